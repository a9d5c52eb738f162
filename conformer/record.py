"""The circumstances in the record of a measurement: machine, versions, command, date, commit and models.

Standard library only: the peers' processes import it too.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable

from conformer import system

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def describe_run(*folders: str | os.PathLike, packages: Iterable[str] = PACKAGES) -> dict:
    """Returns the circumstances of a measurement, to be taken when it starts.

    Args:
        folders: of the models that are measured.
        packages: whose versions matter.
    """
    device = {"cpu": _cpu_model(), "cores": len(system.cores()), "system": f"{platform.system()} {platform.machine()}"}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([*_program(), *sys.argv[1:]]),
        "device": device,
        "load_average": os.getloadavg()[0],  # above 0: other work shared the machine, at the start
        "commit": _commit(),
        "models": models(*folders),
        "versions": versions(*packages),
    }


def models(*folders: str | os.PathLike) -> dict[str, str]:
    """Returns the SHA-256 of the weights in each folder, 16 digits; folders of checkpoints alone are left out."""
    weights = [path for folder in folders if (path := pathlib.Path(folder, "weights.npz").absolute()).exists()]
    return {
        (path.parent.relative_to(ROOT) if path.is_relative_to(ROOT) else path.parent).as_posix(): hash_of(path)
        for path in weights
    }


def hash_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, 16 digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


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


def _program() -> list[str]:
    """What stands between `python` and the arguments: the name of a script, or -m and that of a module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec else [pathlib.Path(sys.argv[0]).name]


def _commit() -> str | None:
    """The commit that is checked out, with a + where code differs from it; None outside a repository."""
    git = ["git", "-C", str(ROOT)]
    others = [":!results", ":!docs", ":!*.md"]  # records made anew, and what report.py makes of them
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", *others], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * (same.returncode != 0)


def _cpu_model() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or "unknown"
