"""Reads and keeps what was measured on each kind of device: the fastest implementation, and its fastest choices.

`kernels/OPERATION/tuned/DEVICE.json` comes with the package. `python bench.py kernels --autotune` writes the user's
own, `~/.cache/edge-conformer/kernels/OPERATION/tuned/DEVICE.json` (or in $XDG_CACHE_HOME), which is read first:

    {"implementation": "mosaic_gpu",
     "choices": [{"implementation": "mosaic_gpu", "width": 512, "format": "bfloat16", "choice": {"rows": 16, ...}}]}

A choice is a dataclass that an implementation defines: how it divides its work.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax

from kernels.device import current_device

FOLDER = pathlib.Path(__file__).parent
_tried = jax.make_user_context(None)  # part of the key of jit's cache, so that another choice compiles another program


def preferred(operation: str) -> str:
    """Returns the implementation that was measured to be the fastest on this kind of device, "xla" where none was."""
    found = (table.get("implementation") for table in _tables(operation))
    return next(filter(None, found), "xla")


def tuned[C](operation: str, implementation: str, kind: type[C], *, width: int, format: str) -> C | None:
    """Returns the fastest choice for a problem on this kind of device, None where none was measured.

    Args:
        kind: the dataclass of the implementation's choices.
        width: the elements of a row or of a head.
        format: the name of their data type.
    """
    if (tried := _tried.value) is not None and isinstance(tried, kind):
        return tried
    for table in _tables(operation):
        for row in table.get("choices", ()):
            if (row["implementation"], row["width"], row["format"]) == (implementation, width, format):
                with contextlib.suppress(TypeError):  # written by a version whose choices had other fields
                    return kind(**row["choice"])
    return None


@contextlib.contextmanager
def trying(choice: Any) -> Iterator[None]:
    """Makes `tuned` return this choice for every problem inside the context: for the search."""
    with _tried(choice):
        yield


def user_folder() -> pathlib.Path:
    """Returns the folder of this user's measurements."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache) / "edge-conformer" / "kernels"


def kept(operation: str) -> dict:
    """Returns the user's own measurements of an operation on this kind of device, {} where there are none."""
    return _read(_file(user_folder(), operation))


def keep(operation: str, record: dict) -> pathlib.Path:
    """Writes the user's own measurements of an operation on this kind of device, and returns their file."""
    file = _file(user_folder(), operation)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(file)
    _read.cache_clear()
    return file


def _tables(operation: str) -> list[dict]:
    """Returns the user's measurements, then the package's."""
    return [_read(_file(folder, operation)) for folder in (user_folder(), FOLDER)]


def _file(folder: pathlib.Path, operation: str) -> pathlib.Path:
    name = re.sub(r"\W+", "_", current_device().kind).lower()
    return folder / operation / "tuned" / f"{name}.json"


@functools.cache
def _read(file: pathlib.Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # there is no file, or it holds no JSON
        return {}
