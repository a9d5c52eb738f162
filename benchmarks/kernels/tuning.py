"""`bench.py kernels --autotune`: the fastest choices and implementations on the device at hand.

Every timing is kept as soon as it is there, and a search that was cut short goes on where it stopped. Shapes and
formats are as few as tell the choices apart: about 150 compilations of one application, to be done in 8 minutes.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

from benchmarks.kernels.cases import Case, select
from benchmarks.kernels.contestants import kernel_here
from benchmarks.kernels.processes import Processes, fingerprint, share_device
from kernels import autotune
from kernels.device import current_device
from kernels.implementation import Unsupported

TUNED = {  # each width with a shape that fills the device; attention also with chunks of both sizes
    "layer_norm": ("train_words", "rows_256", "rows_512", "rows_1024"),
    "chunked_attention": ("train_words", "train_medium", "long_1024_16", "long_16384_64"),
    "lut_softmax": ("stream_words", "train_words", "rows_256", "rows_512", "rows_1024"),
}
FORMATS = {  # each stands for all of its size, which move the same bytes
    "layer_norm": ("bfloat16", "float32"),
    "chunked_attention": ("bfloat16",),
    "lut_softmax": ("bfloat16", "float32"),
}
ALIKE = {"bfloat16": ("bfloat16", "float16")}

Ask = Callable[..., dict[str, Any]]


class TuningError(ValueError):
    """There is nothing to tune."""


def run(operation: str | None, shape: str | None, format: str | None) -> dict[str, Any]:
    """Tunes the operations, shapes and formats that the flags leave, keeps what it finds, and returns it."""
    share_device()
    implementation = kernel_here()
    if implementation is None:
        raise TuningError(f"--autotune: no Pallas kernel runs on this device ({current_device().kind})")
    found = {}
    with Processes() as processes:
        for case in cases(operation, shape, format):
            found[case.operation] = tune(case, implementation, processes.ask)
    return {"operations": found}


def cases(operation: str | None, shape: str | None, format: str | None) -> list[Case]:
    """Forward and backward of each shape and format; of all shapes or formats, those that stand for the others."""
    return [
        case
        for name in ((format,) if format else ("bfloat16", "float32"))
        for case in select(operation, shape, name)
        if case.direction == "both" and not case.variant
        if (shape or case.shape in TUNED[case.operation]) and (format or name in FORMATS[case.operation])
    ]


def tune(case: Case, implementation: str, ask: Ask) -> dict[str, Any]:
    """Times every choice in a case, keeps each time, and what follows from all that were kept. Returns that table."""
    module = importlib.import_module(f"kernels.{case.operation}.{implementation}")
    try:
        candidates = module.candidates(case.width, case.format)
    except Unsupported:
        candidates = []
    here = fingerprint()
    table = autotune.kept(case.operation)
    timings = table.get("timings", []) if table.get("fingerprint") == here else []
    for index, choice in [(None, None), *enumerate(candidates)]:
        row = {
            "implementation": "xla" if choice is None else implementation,
            "shape": case.shape,
            "format": case.format,
            "choice": choice and vars(choice),
        }
        if any(row == {name: timing[name] for name in row} for timing in timings):
            continue
        reply = ask("tuning", "tune", implementation=row["implementation"], case=case, candidate=index)
        timings = [*timings, row | {"seconds": None} | reply]
        table = decide(case.operation, implementation, timings) | {"fingerprint": here, "timings": timings}
        file = autotune.keep(case.operation, table)
        print(f"{file}: {case.shape} {case.format} {row['choice'] or 'xla'}: {reply}", flush=True)
    return table


def decide(operation: str, implementation: str, timings: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest choice of each width and format, and what is faster with them over all shapes: the kernel or XLA.

    Times are of forward and backward, their geometric mean over the shapes of a width. "implementation" is the kernel
    where the geometric mean of its times over those of "xla" is below 1.
    """
    xla = {(t["shape"], t["format"]): t["seconds"] for t in timings if t["choice"] is None}
    # Of each width and format: for each choice, logarithms of its times over those of "xla", by shape.
    logarithms: dict[tuple[int, str], dict[str, tuple[dict, list[float]]]] = {}
    for timing in timings:
        choice, seconds, alone = timing["choice"], timing["seconds"], xla.get((timing["shape"], timing["format"]))
        if choice and seconds and alone:
            width = Case(operation, "", timing["shape"], timing["format"], "both").width
            of_width = logarithms.setdefault((width, timing["format"]), {})
            of_width.setdefault(str(choice), (choice, []))[1].append(math.log(seconds / alone))
    best = {}
    for problem, choices in logarithms.items():
        most = max(len(found) for _, found in choices.values())  # one that failed in a shape is not chosen
        best[problem] = min((sum(found), i) for i, (_, found) in enumerate(choices.values()) if len(found) == most)
    chosen = {problem: list(logarithms[problem].values())[index][0] for problem, (_, index) in best.items()}
    # A format that was measured itself counts before one that another stands for.
    rows = [((width, alike), choice) for (width, f), choice in chosen.items() for alike in ALIKE.get(f, (f,))]
    return {
        "implementation": implementation if sum(total for total, _ in best.values()) < 0 else "xla",
        "choices": [
            {"implementation": implementation, "width": width, "format": format, "choice": choice}
            for (width, format), choice in (dict(rows) | chosen).items()
        ],
    }
