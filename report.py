"""Writes docs/results.md, its plots and the table of README.md from the records in results/.

python report.py
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import pathlib
import sys

from benchmarks.report import build
from benchmarks.report.headline import headline_table, with_headline
from benchmarks.report.page import Report
from conformer.command import run_command

ROOT = pathlib.Path(__file__).parent


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        sys.exit(f"report.py: {arguments[1]} is no flag, and it takes no names: it writes all of docs/ anew")
    docs = ROOT / "docs"
    files = build(ROOT / "results")  # first: where it fails, the plots stay
    for path in docs.glob("results_*.svg"):  # a record that is gone takes its plots along
        path.unlink()
    for name, text in files.items():
        (docs / name).write_text(text)
    readme = ROOT / "README.md"
    if table := headline_table(Report(ROOT / "results")):
        readme.write_text(with_headline(readme.read_text(), table))
    print(f"wrote {docs / 'results.md'}")


if __name__ == "__main__":
    run_command(main)
