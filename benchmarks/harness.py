"""The parts that all measurements share: contestants in turn, a stopwatch, a table."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax

BUSY = 0.5  # load average above which times are doubted


def in_turn[Result](contestants: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Runs the contestants in turn. Returns what each of them returned, round by round."""
    results: dict[str, list[Result]] = {name: [] for name in contestants}
    for turn in range(rounds):
        # The order turns around each time, so that a machine that slows down or speeds up favours nobody.
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            results[name].append(contestants[name]())
    return results


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Measures the seconds of one call, until the arrays that it returns are there."""
    start = clock()
    jax.block_until_ready(run())
    return clock() - start


def core_seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Measures the processor seconds of each call, which other work hardly changes; a first call is not counted."""
    run()
    return [seconds(run, time.process_time) for _ in range(repeats)]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their longest cell, the first to the left and the others to the right."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )


def mebibytes(size: float | None) -> str:
    """Formats a size of memory in MiB: "unknown" where the kernel does not say."""
    return "unknown" if size is None else f"{size:.0f} MiB"
