"""The page as it grows: text, plots, and the records that were read."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from conformer.charts import intervals
from conformer.sweep.table import COSTS, markdown, markdown_table


class Report:
    """Text, plots by file name, and the records read so far."""

    def __init__(self, results: pathlib.Path):
        self.results, self.parts, self.plots = results, [], {}
        self.used: dict[str, dict] = {}

    def record(self, name: str) -> dict | None:
        """results/NAME.json, None where there is none."""
        path = self.results / f"{name}.json"
        if not path.exists():
            return None
        self.used[name] = json.loads(path.read_text())
        return self.used[name]

    def say(self, text: str) -> None:
        self.parts.append(text.strip("\n"))

    def plot(self, name: str, svg: str, title: str, source: str) -> None:
        self.plots[f"results_{name}.svg"] = svg
        self.say(f"![{title}](results_{name}.svg)")
        self.say(f"*{title}.* Source: {source}.")


class Way(NamedTuple):
    """A way of recognising, and its error rate."""

    name: str
    wer: float
    low: float | None
    high: float | None


def way(name: str, row: Mapping) -> Way:
    """Returns a record's error rate and its interval in percent; records without an interval have none."""
    low, high = (100 * row[key] if key in row else None for key in ("wer_low", "wer_high"))
    return Way(name, 100 * row["wer"], low, high)


def sweep(report: Report, name: str, workdir: str) -> dict | None:
    """The record of a sweep; without one, the report says so."""
    record = report.record(f"sweeps/{name}")
    if record is None:
        arguments = f"--sweep=configs/sweeps/{name}.py --workdir={workdir} --json=results/sweeps/{name}.json"
        report.say(f"Not run:\n\n    python sweep.py {arguments}")
    return record


def sweep_table(report: Report, record: Mapping, name: str, costs: Sequence[str] = COSTS) -> None:
    report.say(markdown_table(record["rows"], record["failures"], costs))
    report.say(f"Source: `results/sweeps/{name}.json`, `rows`, which hold more columns.")
    if pairs := record.get("paired"):
        cells = [
            (
                pair["trial"],
                pair["baseline"],
                f"{100 * pair['wer_difference']:+.1f}",
                f"{100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}",
            )
            for pair in pairs
        ]
        report.say("Differences of WER in points, paired over the same recordings (`paired`):")
        report.say(markdown(("trial", "against", "difference", "95 % interval"), cells))


def sweep_plot(report: Report, record: Mapping, name: str, title: str) -> None:
    ways = [way(f"{row['trial']}, {row['mode']}", row) for row in record["rows"]]
    report.plot(name, intervals(ways, "word error rate (%)"), title, f"`results/sweeps/{name}.json`, `rows`")
