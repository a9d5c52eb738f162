"""Calls of the operating system: cores, memory, ending with the parent process, writing files whole.

Standard library only: the peers' processes import it too.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def cores() -> list[int]:
    """The cores that this process may use, ascending."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def use_one_core() -> None:
    """Keeps the process, and those it starts, on one core where the system can; before JAX starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[:1])


@contextlib.contextmanager
def on_cores(some: Sequence[int]) -> Iterator[None]:
    """Keeps what is started inside on these cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, some)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Pauses Python's collector inside: it would go through all of JAX again and again, and find no garbage."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


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


def die_with(parent: int) -> bool:
    """Asks Linux to kill this process when `parent` (a process id) ends; does nothing on other systems.

    Returns False if the parent has ended already.
    """
    if sys.platform != "linux":
        return True
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent  # else it was killed before that took effect


class OutputError(ValueError):
    """A file or folder that could not be written; the message names it and the remedy."""


def check_writable(path: str | pathlib.Path | None) -> None:
    """Raises OutputError unless a file can be written to `path`; None needs no check. To be called before the work."""
    if path is None:
        return
    path = pathlib.Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    device = path.exists() and not path.is_file()
    if not device and not path.parent.is_dir():
        state = "is no folder" if path.parent.exists() else "does not exist"
        raise OutputError(f"{path} cannot be written, {path.parent} {state}: make that folder, or name another")
    if not os.access(path if device else path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written, {path.parent} may not be changed: name a folder of yours")


def check_folder(path: str | pathlib.Path) -> None:
    """Raises OutputError unless `path` is a folder that files can be written to, or can become one."""
    path = pathlib.Path(path)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise OutputError(f"{path} cannot be a folder, {there} is a file: name another")
    if not os.access(there, os.W_OK):
        raise OutputError(f"{path} cannot be written, {there} may not be changed: name a folder of yours")


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Lets SIGINT and SIGTERM wait until the end, and raises KeyboardInterrupt then; for the main thread."""
    came = []
    names = [name for name in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, lambda *_: came.append(True)) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, which takes the place of `path` at the end: that one is there whole or as it was.

    A link stays a link. A device or a pipe is written to itself.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
