"""What the record of a measurement states besides its numbers: the machine, the versions, the command, the date.

Standard library only: the peers' processes import it too.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys

from conformer import system


def describe_run() -> dict:
    """The circumstances of a measurement, taken when it starts."""
    device = {"cpu": _cpu_model(), "cores": len(system.cores()), "system": f"{platform.system()} {platform.machine()}"}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": device,
        "load_average": os.getloadavg()[0],  # above 0: other work shared the machine, at the start
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write(path: str | os.PathLike, record: dict) -> None:
    """Writes a record as readable JSON; missing folders are made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    system.write_text(path, json.dumps(record, indent=2) + "\n")


def _cpu_model() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or "unknown"
