"""A sweep's results: CSV with every column, a short table in Markdown, and a page with plots."""

import collections
import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence

from conformer.charts import Point, intervals, lines
from conformer.evaluation.latency import AXES
from conformer.sweep.figures import UTTERANCE_SECONDS

COLUMNS = (
    "trial",
    "mode",
    "chunk_size",
    "wer",
    "wer_low",
    "wer_high",
    "cer",
    "errors",
    "words",
    "utterances",
    "step",
    "parameters",
    "front_end_share",
    "macs_per_second",
    "bytes_per_second",
    "predicted_joules_per_second",
    "failure",
    "measured_real_time_factor",
    "measured_latency_seconds",
    "measured_training_speed",
)
ERRORS = ("trial", "utterances", "WER (95 % interval)", "CER")
COSTS = ("parameters", "latency, measured")


def csv_table(rows: Sequence[Mapping], failures: Mapping[str, str]) -> str:
    """Every column. All but those that begin with `measured_` are the same whenever a sweep runs on one machine."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    writer.writerows({"trial": name, "failure": reason} for name, reason in failures.items())
    return file.getvalue()


def columns(rows: Sequence[Mapping]) -> dict[str, list[str]]:
    """The rows as a reader sees them: by heading, the columns that hold anything."""
    found = collections.defaultdict(list)
    for row in rows:
        for heading, cell in cells(row).items():
            found[heading].append(cell)
    return {heading: column for heading, column in found.items() if any(column)}


def cells(row: Mapping) -> dict[str, str]:
    """A row as a reader sees it, by heading."""

    def shown(name: str, form: str, scale: float = 1.0) -> str:
        return "" if row.get(name) is None else form.format(scale * row[name])

    return {
        "trial": row["trial"],
        "utterances": f"streams, {row['mode']}" if row["chunk_size"] else row["mode"].replace("offline", "whole"),
        "WER": f"{row['wer']:.2%}",
        "95 % interval": f"{row['wer_low']:.2%} to {row['wer_high']:.2%}",
        "CER": f"{row['cer']:.2%}",
        "parameters": f"{row['parameters']:,}",
        "front end": f"{row['front_end_share']:.1%}",
        "MACs/s": shown("macs_per_second", "{:.1f} M", 1e-6),
        "bytes/s": shown("bytes_per_second", "{:.1f} MB", 1e-6),
        "energy/s, predicted": shown("predicted_joules_per_second", "{:.3f} mJ", 1e3),
        "RTF, measured": shown("measured_real_time_factor", "{:.4f}"),
        "latency, measured": shown("measured_latency_seconds", "{:.2f} s"),
        "training, measured": shown("measured_training_speed", "{:.0f} x"),
    }


def markdown_table(rows: Sequence[Mapping], failures: Mapping[str, str], costs: Sequence[str] = COSTS) -> str:
    """Returns a short table, then a line for each failed trial.

    It shows the trials, their error rates, and those of the headings `costs` under which a row holds anything.
    """
    found = columns(rows)
    if rows:
        errors = zip(found["WER"], found["95 % interval"], strict=True)
        found["WER (95 % interval)"] = [f"{wer} ({interval})" for wer, interval in errors]
    found = {heading: found[heading] for heading in (*ERRORS, *costs) if heading in found}
    text = markdown(list(found), zip(*found.values(), strict=True)) + "\n" if rows else ""
    return text + "".join(f"\n**{name} failed:** {reason}\n" for name, reason in failures.items())


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *rows))


def plots(rows: Sequence[Mapping]) -> dict[str, str]:
    """Titles and SVG: errors of each row, errors against latency, errors against arithmetic."""
    if not rows:
        return {}
    drawn = {
        "Word error rate, 95 % interval": intervals(
            [
                (f"{row['trial']}, {row['mode']}", *(100 * row[key] for key in ("wer", "wer_low", "wer_high")))
                for row in rows
            ],
            "word error rate (%)",
        )
    }
    streams = _series(rows, "measured_latency_seconds", 1.0)
    if any(len(points) > 1 for points in streams.values()):
        drawn["Errors against latency"] = lines(streams, *AXES)
    whole = _series([row for row in rows if not row["chunk_size"]], "macs_per_second", 1e-6)
    if len({points[0].x for points in whole.values()}) > 1:
        drawn["Errors against arithmetic"] = lines(
            whole, "multiply-accumulates a second of audio (M)", "word error rate (%)"
        )
    return drawn


def _series(rows: Sequence[Mapping], key: str, scale: float) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row.get(key) is not None:
            wers = (100 * row[name] for name in ("wer", "wer_low", "wer_high"))
            series.setdefault(row["trial"], []).append(Point(scale * row[key], *wers))
    return {name: sorted(points) for name, points in series.items()}


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:0 auto;padding:1rem;color:#24292f;background:#fff}}
h1{{font-size:1.5rem}}h2{{font-size:1.15rem;margin-top:2rem}}
.wide{{overflow-x:auto}}.plot{{min-width:32rem}}
table{{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}}
th,td{{padding:.3rem .6rem;border-bottom:1px solid #d0d7de;text-align:right;white-space:nowrap}}
th:nth-child(-n+2),td:nth-child(-n+2){{text-align:left}}
td.measured,th.measured{{font-style:italic}}
.failed{{border-left:4px solid #cf222e;padding-left:.8rem;overflow-wrap:anywhere}}
code{{overflow-wrap:anywhere}}
@media(prefers-color-scheme:dark){{body{{color:#e6edf3;background:#0d1117}}th,td{{border-color:#30363d}}}}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{description}</p>
{failures}
{plots}
<h2>All figures</h2>
<div class="wide">{table}</div>
<p>Columns in italics are times, measured, and differ from run to run; the others do not. Arithmetic and bytes are
counted, energy is predicted for a watch-class accelerator: of a chunk for streams, of {seconds:g} s for whole
utterances.</p>
<p><code>{command}</code></p>
</body>
</html>
"""


def page(title: str, description: str, rows: Sequence[Mapping], failures: Mapping[str, str], command: str) -> str:
    """Returns the results as HTML that needs no other file."""
    found = columns(rows)

    def line(tag: str, values: Sequence[str]) -> str:
        marks = [' class="measured"' if "measured" in heading else "" for heading in found]
        inner = (f"<{tag}{mark}>{html.escape(value)}</{tag}>" for mark, value in zip(marks, values, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    table = "\n".join([line("th", list(found)), *(line("td", values) for values in zip(*found.values(), strict=True))])
    failed = "".join(
        f'<p class="failed"><strong>{html.escape(name)} failed:</strong> {html.escape(reason)}</p>\n'
        for name, reason in failures.items()
    )
    drawn = "\n".join(
        f'<h2>{html.escape(name)}</h2>\n<div class="wide">{svg}</div>' for name, svg in plots(rows).items()
    )
    return PAGE.format(
        title=html.escape(title),
        description=html.escape(description),
        failures=failed,
        plots=drawn,
        table=f"<table>\n{table}\n</table>",
        seconds=UTTERANCE_SECONDS,
        command=html.escape(command),
    )
