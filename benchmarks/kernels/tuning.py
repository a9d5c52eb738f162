"""`bench.py kernels --autotune`: the fastest choices and implementations on the device at hand."""

import importlib
import math
from collections.abc import Callable
from typing import Any

from benchmarks.kernels.cases import SHAPES, Case
from benchmarks.kernels.contestants import kernel_here
from benchmarks.kernels.timing import device_seconds
from conformer import record
from kernels import autotune
from kernels.device import current_device
from kernels.formats import COMPUTED
from kernels.implementation import Unsupported

Timer = Callable[[Callable[..., Any], Callable[[int], tuple]], float]


class TuningError(ValueError):
    """There is nothing to tune."""


def run(operation: str | None, timer: Timer = device_seconds) -> dict[str, Any]:
    """Tunes one operation or all, writes `kernels/OPERATION/tuned/DEVICE.json`, and returns the records."""
    name = kernel_here()
    if name is None:
        raise TuningError(f"--autotune: no Pallas kernel runs on this device ({current_device().kind})")
    circumstances = record.describe_run() | {"versions": record.versions("jax", "jaxlib")}
    found = {}
    for tuned in [operation] if operation else list(SHAPES):
        found[tuned] = circumstances | tune(tuned, name, timer)
        print(f"{autotune.keep(tuned, found[tuned])}: {found[tuned]['implementation']}", flush=True)
    return {"operations": found}


def tune(operation: str, implementation: str, timer: Timer) -> dict[str, Any]:
    """The fastest choice of each width and format, and what is faster with them over all shapes: the kernel or XLA.

    Times are of forward and backward, their geometric mean over the shapes of a width. "implementation" is the kernel
    where the geometric mean of its times over those of "xla" is below 1.
    """
    candidates = importlib.import_module(f"kernels.{operation}.{implementation}").candidates
    # Of each width and format: for each choice, logarithms of its times over those of "xla", summed over the shapes.
    sums: dict[tuple[int, str], dict[Any, float]] = {}
    for shape in SHAPES[operation]:
        for format in COMPUTED:
            case = Case(operation, "", shape, format, "both")
            try:
                seconds = {
                    choice: _timed(case, implementation, choice, timer) for choice in candidates(case.width, format)
                }
            except Unsupported:
                continue
            xla = timer(case.function("xla"), case.draw)
            totals = sums.setdefault((case.width, format), dict.fromkeys(seconds, 0.0))
            for choice, time in seconds.items():
                totals[choice] += math.log(time / xla)
    best = {problem: min(totals.items(), key=lambda item: item[1]) for problem, totals in sums.items()}
    choices = [
        {"implementation": implementation, "width": width, "format": format, "choice": vars(choice)}
        for (width, format), (choice, _) in best.items()
    ]
    faster = sum(logarithm for _, logarithm in best.values()) < 0
    return {"implementation": implementation if faster else "xla", "choices": choices}


def _timed(case: Case, implementation: str, choice: Any, timer: Timer) -> float:
    with autotune.trying(choice):
        return timer(case.function(implementation), case.draw)
