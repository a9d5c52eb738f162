"""The table that a newcomer sees first: each shipped model in a row, from its records and the cost model."""

import pathlib
import re
from collections.abc import Mapping

from benchmarks.report.page import Report
from conformer.config import Config
from conformer.cost import Workload
from conformer.policy import get_policy
from conformer.sweep.figures import costs
from conformer.sweep.table import markdown

ROOT = pathlib.Path(__file__).parents[2]
MODELS = {  # what each recognises, and the milliseconds of a chunk, and of its look-ahead: 640 in all
    "english_small": ("read English, any words", "320 + 320 ms"),
    "words": ("nine command words", "320 + 320 ms"),
    "words_micro": ("nine command words", "640 ms"),
}
COLUMNS = ("model", "word errors, whole / live", "latency", "real-time factor", "size, int8", "energy, predicted")
MARKED = re.compile(r"(?s)(<!-- headline: report\.py -->\n).*?(<!-- /headline -->)")


def headline(report: Report) -> None:
    """Writes the table into the report, where no record is missing."""
    if table := headline_table(report):
        report.say("## At a glance")
        report.say(
            "The shipped models on their test splits: whole recordings, and live on one core. A live word waits for at "
            "most 640 ms of audio: a chunk of 320 ms and as much look-ahead, or a chunk of 640 ms (`words_micro`). "
            "Energy is what the cost model predicts for a second of audio on a watch-class device, with int8 weights."
        )
        report.say(table)
        report.say(
            "Sources: " + ", ".join(f"`results/{name}.json`, `results/parity_{name}.json`" for name in MODELS) + "."
        )


def headline_table(report: Report) -> str | None:
    """Returns the table; None where a record is missing."""
    rows = []
    for name, (what, chunk) in MODELS.items():
        scores, parity = report.record(name), report.record(f"parity_{name}")
        if scores is None or parity is None:
            return None
        whole, live = best(scores, "offline"), best(scores, chunk)
        config = Config.from_json(ROOT / "models" / name / "config.json")
        sizes = live["chunk_size"], live.get("num_left_chunks", 4)
        workload = Workload.chunk(config, *sizes, look_ahead=live.get("look_ahead", 0))
        joules = costs(config, workload, get_policy("int8"))["predicted_joules_per_second"] or 0.0
        rows.append(
            (
                f"`{name}`: {what}",
                f"{100 * whole['wer']:.1f} % / {100 * live['wer']:.1f} %",
                f"{live['latency_seconds']:.2f} s",
                f"{live['real_time_factor']:.3f}",
                f"{parity['rows']['onnx_int8']['file_bytes'] / 1e6:.1f} MB",
                f"{1e3 * joules:.2f} mJ/s",
            )
        )
    return markdown(COLUMNS, rows)


def best(scores: Mapping, mode: str) -> Mapping:
    """The row of a way of recognising: with the language model where the model has one, else greedy."""
    ways = [scores, *scores.get("searched", []), *scores.get("streaming", [])]
    return [way for way in ways if way["mode"].split(",")[0] == mode][-1]


def with_headline(readme: str, table: str) -> str:
    """Returns the README with the table between its two marks."""
    return MARKED.sub(lambda marks: f"{marks[1]}{table}\n{marks[2]}", readme)
