"""`bench.py kernels`: every case with every contestant, and the figures that follow."""

from typing import Any

import jax

from benchmarks.kernels import figures, step
from benchmarks.kernels.cases import Case, SelectionError, select
from benchmarks.kernels.contestants import Torch, functions, kernel_here, measure
from benchmarks.kernels.figures import table as table
from benchmarks.kernels.timing import rates
from kernels.device import current_device
from kernels.implementation import NAMES

SMALL = ("stream_words", "train_words")  # what a CPU measures unless told otherwise


def run(operation: str | None, shape: str | None, format: str | None, implementation: str | None) -> dict[str, Any]:
    """Measures the cases that the flags leave; with `implementation`, that one alone and no other library."""
    jax.config.update("jax_enable_compilation_cache", False)
    device = current_device()
    cases = [] if operation == "training_step" else select(operation, shape, format)
    if device.platform == "cpu" and shape is None:
        cases = [case for case in cases if case.shape in SMALL]
    if implementation not in (None, *NAMES):
        raise SelectionError(f"--implementation={implementation} is not one of {', '.join(NAMES)}")
    bounds = rates()
    print(
        f"{device.kind}: copies {bounds['copy_bytes_per_second'] / 1e9:.0f} GB/s, multiplies matrices at "
        f"{bounds['operations_per_second'] / 1e12:.2f} T operations/s (bfloat16)\n\n{HEADER}",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    torch = Torch() if implementation is None and cases else None
    for case in cases:
        found = [measure(case, *item) for item in functions(case).items() if implementation in (None, item[0])]
        for outcome in found + (torch.measure(case) if torch else []):
            rows.append(_row(case) | vars(outcome))
            print(line(rows[-1], bounds), flush=True)
    result = {
        "accelerator": {"kind": device.kind, "capability": device.capability},
        "rates": bounds,
        "rows": rows,
        "figures": figures.compute(rows, bounds),
    }
    if shape is None and operation in (None, "chunked_attention") and (kernel := kernel_here()):
        result["attention_memory"] = figures.attention_memory(kernel)
    if implementation is None and operation in (None, "training_step"):
        result["training_step"] = step.compare()
    return result


HEADER = (
    f"{'operation':<30}{'shape':<18}{'format':<10}{'direction':<9}{'contestant':<16}"
    f"{'us':>10}{'of copy':>9}{'of matrix':>10}"
)


def _row(case: Case) -> dict[str, Any]:
    return case._asdict() | {"bytes": case.bytes, "operations": case.operations}


def line(row: dict[str, Any], bounds: dict[str, float]) -> str:
    """One line of the table: the time, and the shares of the device's own rates."""
    name = row["operation"] + (f", {row['variant']}" if row["variant"] else "")
    start = f"{name:<30}{row['shape']:<18}{row['format']:<10}{row['direction']:<9}{row['contestant']:<16}"
    if row["seconds"] is None:
        return f"{start}  {row['skipped']}"
    copied = row["bytes"] / row["seconds"] / bounds["copy_bytes_per_second"]
    multiplied = row["operations"] / row["seconds"] / bounds["operations_per_second"]
    return f"{start}{row['seconds'] * 1e6:10.1f}{copied:9.0%}" + (f"{multiplied:10.0%}" if multiplied else "")
