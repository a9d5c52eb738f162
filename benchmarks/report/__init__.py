"""The report: every record in results/ put into words, tables and plots, and nothing else."""

import pathlib

from benchmarks.report import sections
from benchmarks.report.headline import headline
from benchmarks.report.page import Report
from benchmarks.report.text import HEAD, LIBRISPEECH


def build(results: pathlib.Path) -> dict[str, str]:
    """results.md and its plots, by file name, from the records in a folder."""
    report = Report(results)
    report.say(HEAD)
    headline(report)
    for section in sections.IN_ORDER:
        section(report)
    report.say(LIBRISPEECH)
    sections.circumstances(report)
    return {"results.md": "\n\n".join(report.parts) + "\n"} | report.plots
