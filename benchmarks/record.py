"""What every record states besides its numbers: the machine, the versions, the command, the date.

Standard library only, since the peers' processes import it too.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys


def describe_run() -> dict:
    """The circumstances of a measurement, taken when it starts."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": {"cpu": _cpu_model(), "cores": num_cores(), "system": f"{platform.system()} {platform.machine()}"},
        "load_average": os.getloadavg()[0],  # above 0: other work shared the machine, at the start
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mib(process: int | str = "self") -> float | None:
    """The most memory that a process has held, in MiB; None where the kernel does not say.

    Not from getrusage: there, a child starts at its parent's peak.
    """
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return round(int(match[1]) / 1024, 1) if match else None


def write(path: str | os.PathLike, record: dict) -> None:
    """Writes a record as readable JSON; missing folders are made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def _cpu_model() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or "unknown"
