"""Joules that a piece of work takes, from the machine's own counters, where they can be read.

A processor's packages count theirs through Linux's powercap (Intel RAPL, AMD too; often for root alone), an NVIDIA GPU
through NVML (package nvidia-ml-py). Both count all that the package or the board does: what it takes at rest in the
same time is subtracted.
"""

import importlib.util
import pathlib
import time
from collections.abc import Callable

RAPL = pathlib.Path("/sys/class/powercap")
REST_SECONDS = 2.0  # NVML counts every 20 to 100 ms


def joules(run: Callable[[], object], counter: "Counter | None", rest_seconds: float = REST_SECONDS) -> float | None:
    """Energy of `run()` beyond that of rest; None without a counter."""
    if counter is None:
        return None
    power = counter.joules_of(lambda: time.sleep(rest_seconds)) / rest_seconds
    start = time.perf_counter()
    total = counter.joules_of(run)
    return total - power * (time.perf_counter() - start)


class Counter:
    """Counters that are read together; each counts joules and starts again from 0 at its range."""

    def __init__(self, read: Callable[[], list[float]], ranges: list[float]):
        self._read, self._ranges = read, ranges

    def joules_of(self, run: Callable[[], object]) -> float:
        before = self._read()
        run()
        return sum((b - a) % r for a, b, r in zip(before, self._read(), self._ranges, strict=True))


def processor(folder: pathlib.Path = RAPL) -> Counter | None:
    """The packages of this machine; None where the kernel has no counters, or not for this user."""
    packages = sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)
    try:
        ranges = [float((path / "max_energy_range_uj").read_text()) / 1e6 for path in packages]
        counter = Counter(lambda: [float((path / "energy_uj").read_text()) / 1e6 for path in packages], ranges)
        counter.joules_of(lambda: None)
    except (OSError, ValueError):
        return None
    return counter if packages else None


def gpu() -> Counter | None:
    """The first NVIDIA GPU; None where it, or nvidia-ml-py, is missing, or it does not count."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml  # pyright: ignore[reportMissingImports]

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        counter = Counter(lambda: [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3], [float("inf")])
        counter.joules_of(lambda: None)
    except pynvml.NVMLError:
        return None
    return counter
