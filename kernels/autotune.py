"""What was measured on each kind of device: which implementation is the fastest, and with which sizes of blocks.

`kernels/OPERATION/tuned/DEVICE.json` holds it; `python bench.py kernels --autotune` writes it.
"""

import functools
import json
import pathlib
import re

from kernels.device import Device, current_device

FOLDER = pathlib.Path(__file__).parent


def preferred(operation: str) -> str:
    """The implementation that was measured to be the fastest on this kind of device; "xla" where nothing was."""
    return _read(operation, current_device().kind).get("implementation", "xla")


def tuned_file(operation: str, device: Device) -> pathlib.Path:
    """Where the measurements of an operation on a kind of device are kept."""
    return _file(operation, device.kind)


def _file(operation: str, kind: str) -> pathlib.Path:
    return FOLDER / operation / "tuned" / (re.sub(r"\W+", "_", kind).lower() + ".json")


@functools.cache
def _read(operation: str, kind: str) -> dict:
    file = _file(operation, kind)
    return json.loads(file.read_text()) if file.exists() else {}
