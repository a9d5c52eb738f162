"""Settings of the process that every script makes before its first computation, which is when they take effect."""

import ctypes
import os
import pathlib
import re
import sys
import warnings
from typing import Any

from absl import logging


def set_up() -> None:
    """Sets up JAX: keeps compiled functions on disk between runs, freed memory in the process, and warnings short."""
    import jax  # here: an artefact runs without it

    speak_plainly()
    if (cache := cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    sys.unraisablehook = _report_unless_orphaned
    _spare_threads()
    if sys.platform == "linux":
        _keep_heap()


def speak_plainly() -> None:
    """Keeps warnings short, and libraries silent."""
    logging.set_verbosity(logging.FATAL)  # libraries log through absl, tracebacks included, what they raise as well
    warnings.showwarning = _print_warning


def cache_folder() -> pathlib.Path | None:
    """The folder of what is kept between runs; None where the user has no home, or may not write to it."""
    try:
        folder = pathlib.Path.home() / ".cache" / "edge-conformer"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user is not known to the system
        return None
    return folder if os.access(folder, os.W_OK) else None


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A line like those of errors, without the place in the source."""
    print(f"{pathlib.Path(sys.argv[0]).name}: warning: {message}", file=sys.stderr)


def _report_unless_orphaned(unraisable: Any) -> None:
    """Hides the errors of file operations that outlive a failed checkpoint: the failure itself is raised, once."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _spare_threads() -> None:
    """Gives XLA more threads than a processor has shares (--xla_force_host_platform_device_count).

    A Fourier transform waits, inside one of its threads, for others of the same pool. With as many shares as threads
    all would wait for ever. XLA reads NPROC when it starts.
    """
    shares = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if shares and int(shares[1]) > 1:
        os.environ.setdefault("NPROC", str(int(shares[1]) + (os.cpu_count() or 1)))


def _keep_heap() -> None:
    """Tells glibc not to return large blocks to the kernel.

    XLA's CPU client allocates the temporaries of a training step anew at every step. Each page of them would be mapped,
    zeroed and unmapped again, which takes a large part of the step (docs/training.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library than glibc
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never
    mallopt(top_pad, 256 * 2**20)
    mallopt(arena_max, 1)
