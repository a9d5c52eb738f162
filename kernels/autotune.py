"""What was measured on each kind of device: which implementation is the fastest, and with which choices.

`kernels/OPERATION/tuned/DEVICE.json` holds it; `python bench.py kernels --autotune` writes it:

    {"implementation": "mosaic_gpu",
     "choices": [{"implementation": "mosaic_gpu", "width": 512, "format": "bfloat16", "choice": {"rows": 16, ...}}]}

A choice is a dataclass of an implementation's own: how it cuts its work up.
"""

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax

from kernels.device import current_device

FOLDER = pathlib.Path(__file__).parent
_tried = jax.make_user_context(None)  # part of the key of jit's cache: another choice is another program


def preferred(operation: str) -> str:
    """The implementation that was measured to be the fastest on this kind of device; "xla" where nothing was."""
    return _read(tuned_file(operation)).get("implementation", "xla")


def tuned[C](operation: str, implementation: str, kind: type[C], *, width: int, format: str) -> C | None:
    """The fastest choice for a problem on this kind of device; None where it was not measured.

    Args:
        kind: the dataclass of the implementation's choices.
        width: of a row or a head.
    """
    if (tried := _tried.value) is not None and isinstance(tried, kind):
        return tried
    for row in _read(tuned_file(operation)).get("choices", ()):
        if (row["implementation"], row["width"], row["format"]) == (implementation, width, format):
            return kind(**row["choice"])
    return None


@contextlib.contextmanager
def trying(choice: Any) -> Iterator[None]:
    """Inside, `tuned` answers with this choice whatever the problem: for the search."""
    with _tried(choice):
        yield


def tuned_file(operation: str) -> pathlib.Path:
    """Where the measurements of an operation on this kind of device are kept."""
    name = re.sub(r"\W+", "_", current_device().kind).lower()
    return FOLDER / operation / "tuned" / f"{name}.json"


def keep(operation: str, record: dict) -> pathlib.Path:
    """Writes the measurements of an operation on this kind of device, which hold from now on."""
    file = tuned_file(operation)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
    _read.cache_clear()
    return file


@functools.cache
def _read(file: pathlib.Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {}
