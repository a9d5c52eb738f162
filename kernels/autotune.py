"""What was measured on each kind of device: which implementation is the fastest, and with which choices.

`kernels/OPERATION/tuned/DEVICE.json` comes with the package. `python bench.py kernels --autotune` writes the user's
own, `~/.cache/edge-conformer/kernels/OPERATION/tuned/DEVICE.json` (or in $XDG_CACHE_HOME), which counts before it:

    {"implementation": "mosaic_gpu",
     "choices": [{"implementation": "mosaic_gpu", "width": 512, "format": "bfloat16", "choice": {"rows": 16, ...}}]}

A choice is a dataclass of an implementation's own: how it cuts its work up.
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
_tried = jax.make_user_context(None)  # part of the key of jit's cache: another choice is another program


def preferred(operation: str) -> str:
    """The implementation that was measured to be the fastest on this kind of device; "xla" where nothing was."""
    found = (table.get("implementation") for table in _tables(operation))
    return next(filter(None, found), "xla")


def tuned[C](operation: str, implementation: str, kind: type[C], *, width: int, format: str) -> C | None:
    """The fastest choice for a problem on this kind of device; None where it was not measured.

    Args:
        kind: the dataclass of the implementation's choices.
        width: of a row or a head.
    """
    if (tried := _tried.value) is not None and isinstance(tried, kind):
        return tried
    for table in _tables(operation):
        for row in table.get("choices", ()):
            if (row["implementation"], row["width"], row["format"]) == (implementation, width, format):
                with contextlib.suppress(TypeError):  # kept by another version, whose choices had other fields
                    return kind(**row["choice"])
    return None


@contextlib.contextmanager
def trying(choice: Any) -> Iterator[None]:
    """Inside, `tuned` answers with this choice whatever the problem: for the search."""
    with _tried(choice):
        yield


def user_folder() -> pathlib.Path:
    """Where this user's measurements are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache) / "edge-conformer" / "kernels"


def kept(operation: str) -> dict:
    """The user's own measurements of an operation on this kind of device, empty where there are none."""
    return _read(_file(user_folder(), operation))


def keep(operation: str, record: dict) -> pathlib.Path:
    """Writes the user's own measurements of an operation on this kind of device, which hold from now on."""
    file = _file(user_folder(), operation)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(file)
    _read.cache_clear()
    return file


def _tables(operation: str) -> list[dict]:
    """The user's before the package's."""
    return [_read(_file(folder, operation)) for folder in (user_folder(), FOLDER)]


def _file(folder: pathlib.Path, operation: str) -> pathlib.Path:
    name = re.sub(r"\W+", "_", current_device().kind).lower()
    return folder / operation / "tuned" / f"{name}.json"


@functools.cache
def _read(file: pathlib.Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # none, or one that was not written to its end
        return {}
