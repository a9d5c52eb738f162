"""Writes docs/results.md and its plots from the records in results/.

python report.py
"""

import pathlib

from absl import app

from benchmarks.report import build
from conformer.command import parse_flags

ROOT = pathlib.Path(__file__).parent


def main(_) -> None:
    docs = ROOT / "docs"
    for path in docs.glob("results_*.svg"):  # a record that is gone takes its plots along
        path.unlink()
    for name, text in build(ROOT / "results").items():
        (docs / name).write_text(text)
    print(f"wrote {docs / 'results.md'}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
