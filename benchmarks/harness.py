"""What the measurements have in common: contestants in turn, a stopwatch, a table."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax

BUSY = 0.5  # load average above which times are doubted


def in_turn[Result](contestants: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """What each contestant returns, round by round."""
    results: dict[str, list[Result]] = {name: [] for name in contestants}
    for turn in range(rounds):
        # Back and forth, so that a machine that slows down or speeds up favours nobody.
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            results[name].append(contestants[name]())
    return results


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call, until the arrays that it returns are there."""
    start = clock()
    jax.block_until_ready(run())
    return clock() - start


def core_seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Of processor time, call by call after one that is not counted: on one core, the wall's less what others took."""
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
    """Of memory, "unknown" where the kernel does not say."""
    return "unknown" if size is None else f"{size:.0f} MiB"
