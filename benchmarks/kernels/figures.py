"""The figures that the kernels are judged by, from the rows of a run."""

import itertools
import math
from typing import Any

from benchmarks.kernels.cases import SHAPES, Case
from benchmarks.kernels.contestants import COPY, OURS

BANDWIDTH_GOAL = 0.9  # of the device's copy, on these shapes
BANDWIDTH_SHAPES = ("rows_256", "rows_512", "rows_1024")
ATTENTION_GOAL = 1.5  # times the best alternative, on the long shapes


def compute(rows: list[dict[str, Any]], bounds: dict[str, float]) -> list[dict[str, Any]]:
    """For each case with a kernel: its shares of both copies, and how much faster it is than the best of the others.

    The copies are of 1 GiB, and of as many bytes as the case cannot do without.
    """
    cases: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in rows:
        timed = cases.setdefault(tuple(row[name] for name in Case._fields), {})
        if row["seconds"] is not None:
            timed[row["contestant"]] = row
    found = []
    for case, timed in cases.items():
        ours = next((timed.pop(name) for name in OURS if name in timed), None)
        equal = timed.pop(COPY, None)
        if ours is None:
            continue
        best = min(timed.values(), key=lambda row: row["seconds"], default=None)
        found.append(
            Case(*case)._asdict()
            | {
                "share_of_copy": ours["bytes"] / ours["seconds"] / bounds["copy_bytes_per_second"],
                "share_of_equal_copy": equal and equal["seconds"] / ours["seconds"],
                "best_alternative": best and best["contestant"],
                "times_as_fast": best and best["seconds"] / ours["seconds"],
            }
        )
    return found


def memory_cases() -> list[Case]:
    """Those whose memory beside arguments and results is to grow with the length alone."""
    shapes = filter(_is_long, SHAPES["chunked_attention"])
    return [Case("chunked_attention", "", shape, "bfloat16", "both") for shape in shapes]


def table(result: dict[str, Any]) -> str:
    """Goals and what was reached; nothing is claimed where no kernel ran. The rows were printed one by one."""
    # Attention from tables simulates a device: no speed is asked of it.
    found = [f for f in result["figures"] if (f["operation"], f["variant"]) != ("chunked_attention", "tables")]
    lines = [""]
    if not found and "training_step" not in result:
        lines.append("No Pallas kernel ran: the figures of the kernels are left open.")
    rows = [f for f in found if f["operation"] != "chunked_attention" and f["shape"] in BANDWIDTH_SHAPES]
    if forward := [f for f in rows if f["direction"] == "forward"]:
        lowest = min(forward, key=lambda f: f["share_of_copy"])
        lines.append(
            f"1. Norms and softmax, forward: {lowest['share_of_copy']:.0%} of the rate of a copy of 1 GiB at least, "
            f"goal {BANDWIDTH_GOAL:.0%} ({_name(lowest)})"
        )
    if equal := [f for f in forward if f["share_of_equal_copy"]]:
        lowest = min(equal, key=lambda f: f["share_of_equal_copy"])
        lines.append(f"   and {lowest['share_of_equal_copy']:.0%} of a copy of the same bytes ({_name(lowest)})")
    if compared := [f for f in found if f["operation"] != "chunked_attention" and f["times_as_fast"]]:
        lowest = min(compared, key=lambda f: f["times_as_fast"])
        lines.append(
            f"   and {lowest['times_as_fast']:.2f} times as fast as the best alternative at least, goal 1 "
            f"({_name(lowest)}; {lowest['best_alternative']})"
        )
    for figure in found:
        if figure["operation"] == "chunked_attention" and _is_long(figure["shape"]):
            ratio = figure["times_as_fast"]
            lines.append(
                f"2. {_name(figure)}: "
                + (
                    f"{ratio:.2f} times as fast as {figure['best_alternative']}, goal {ATTENTION_GOAL}"
                    if ratio
                    else "no alternative ran"
                )
            )
    if memory := result.get("attention_memory"):
        growth = [math.log2(b / a) for a, b in itertools.pairwise(memory.values()) if a]
        lines.append(f"   Memory beside arguments and results, bytes: {memory}; doublings between them: {growth}")
    if training := result.get("training_step"):
        lines.append(f"3. {training['text']}")
    return "\n".join(lines)


def _is_long(shape: str) -> bool:
    return shape.startswith("long")


def _name(figure: dict[str, Any]) -> str:
    variant = f", {figure['variant']}" if figure["variant"] else ""
    return f"{figure['operation']}{variant}, {figure['shape']}, {figure['format']}, {figure['direction']}"
