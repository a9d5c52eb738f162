"""`bench.py kernels --autotune`: the fastest blocks and implementations on the device at hand."""

import importlib
import math
from collections.abc import Callable
from typing import Any

from benchmarks.kernels.cases import SHAPES, Case
from benchmarks.kernels.contestants import OURS
from benchmarks.kernels.timing import device_seconds
from conformer import record
from kernels import autotune
from kernels.device import current_device
from kernels.implementation import Unsupported, available

Timer = Callable[[Callable[..., Any], Callable[[int], tuple]], float]
DTYPES = ("float32", "bfloat16", "float16")


class TuningError(ValueError):
    """There is nothing to tune."""


def run(operation: str | None, timer: Timer = device_seconds) -> dict[str, Any]:
    """Tunes one operation or all, writes `kernels/OPERATION/tuned/DEVICE.json`, and returns the records."""
    name = next((name for name in sorted(OURS) if available(name)), None)
    if name is None:
        raise TuningError(f"--autotune: no Pallas kernel runs on this device ({current_device().kind})")
    circumstances = record.describe_run() | {"versions": record.versions("jax", "jaxlib")}
    found = {}
    for tuned in [operation] if operation else list(SHAPES):
        found[tuned] = circumstances | tune(tuned, name, timer)
        print(f"{autotune.keep(tuned, found[tuned])}: {found[tuned]['implementation']}", flush=True)
    return {"operations": found}


def tune(operation: str, implementation: str, timer: Timer) -> dict[str, Any]:
    """The fastest blocks of each width and format, and what is faster with them over all shapes: the kernel or XLA.

    Times are of forward and backward, their geometric mean over the shapes of a width. "implementation" is the kernel
    where the geometric mean of its times over those of "xla" is below 1.
    """
    # Of each width and format: for each choice, logarithms of its times over those of "xla", summed over the shapes.
    sums: dict[tuple[int, str], dict[Any, float]] = {}
    for shape in SHAPES[operation]:
        for format in DTYPES:
            case = Case(operation, "", shape, format, "both")
            try:
                seconds = {
                    tried: _timed(case, implementation, tried, timer) for tried in _candidates(case, implementation)
                }
            except Unsupported:
                continue
            xla = timer(case.function("xla"), case.draw)
            choices = sums.setdefault((case.width, format), dict.fromkeys(seconds, 0.0))
            for tried, time in seconds.items():
                choices[tried] += math.log(time / xla)
    best = {problem: min(choices.items(), key=lambda item: item[1]) for problem, choices in sums.items()}
    blocks = [
        {"implementation": implementation, "width": width, "format": format, "blocks": vars(tried)}
        for (width, format), (tried, _) in best.items()
    ]
    faster = sum(logarithm for _, logarithm in best.values()) < 0
    return {"implementation": implementation if faster else "xla", "blocks": blocks}


def _timed(case: Case, implementation: str, blocks: Any, timer: Timer) -> float:
    with autotune.trying(blocks):
        return timer(case.function(implementation), case.draw)


def _candidates(case: Case, implementation: str) -> list[Any]:
    """Blocks to try. Raises Unsupported where the kernel does not run."""
    width = case.width
    if case.operation == "chunked_attention":
        return importlib.import_module(f"kernels.chunked_attention.{implementation}").candidates()
    if implementation == "mosaic_gpu":
        from kernels import gpu_rows
        from kernels.layer_norm.mosaic_gpu import PER_LANE

        return gpu_rows.candidates(gpu_rows.heuristic(case.operation, "columns", width, case.format, PER_LANE), width)
    from kernels import tpu_rows
    from kernels.layer_norm import mosaic_tpu as norm
    from kernels.lut_softmax import mosaic_tpu as softmax

    return tpu_rows.candidates((norm if case.operation == "layer_norm" else softmax).heuristic(width))
