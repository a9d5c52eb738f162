"""Writes docs/results.md and its plots from the records in results/.

python report.py
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import pathlib

from benchmarks.report import build
from conformer.command import run_command

ROOT = pathlib.Path(__file__).parent


def main(_) -> None:
    docs = ROOT / "docs"
    for path in docs.glob("results_*.svg"):  # a record that is gone takes its plots along
        path.unlink()
    for name, text in build(ROOT / "results").items():
        (docs / name).write_text(text)
    print(f"wrote {docs / 'results.md'}")


if __name__ == "__main__":
    run_command(main)
