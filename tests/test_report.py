"""The report: made from the records alone, and what is committed is what they say."""

import json
import pathlib
import shutil

import pytest

from benchmarks.report import build
from benchmarks.report.headline import headline_table
from benchmarks.report.page import Report

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def results(tmp_path) -> pathlib.Path:
    return shutil.copytree(ROOT / "results", tmp_path / "results")


def test_the_committed_report_is_that_of_the_committed_records():
    files = build(ROOT / "results")
    assert {path.name for path in (ROOT / "docs").glob("results*")} == set(files)
    for name, text in files.items():
        assert (ROOT / "docs" / name).read_text() == text, f"docs/{name} is not that of results/: run report.py"


def test_the_table_of_the_readme_is_that_of_the_records():
    table = headline_table(Report(ROOT / "results"))
    assert table and f"<!-- headline: report.py -->\n{table}\n<!-- /headline -->" in (ROOT / "README.md").read_text()


def test_every_plot_is_shown_and_every_record_that_is_named_exists():
    files = build(ROOT / "results")
    text = files["results.md"]
    for name in set(files) - {"results.md"}:
        assert f"]({name})" in text
    named = {part.split("`")[0] for part in text.split("`results/")[1:]}
    assert named and all((ROOT / "results" / name).exists() for name in named if name)


def test_numbers_follow_the_records(results):
    before = build(results)
    record = json.loads((results / "words.json").read_text())
    record["streaming"][0]["wer"] = record["streaming"][0]["wer_high"] = 0.987
    (results / "words.json").write_text(json.dumps(record))
    after = build(results)
    assert {name for name in after if after[name] != before[name]} == {"results_latency_words.svg"}


def test_what_has_no_record_was_not_run(tmp_path):
    files = build(tmp_path)
    assert list(files) == ["results.md"]
    text = files["results.md"]
    assert text.count("Not run") >= 6 and "Open, for lack of hardware" in text
    for name in ("subsampling", "front_ends_english", "numerics", "chunk", "layout", "size"):
        assert f"--sweep=configs/sweeps/{name}.py" in text


def test_english_small_is_drawn_from_its_record(tmp_path):
    score = {"wer": 0.5, "wer_low": 0.4, "wer_high": 0.6, "cer": 0.2}
    record = {
        "date": "2026-01-01",
        "command": "python train.py",
        "device": "cpu",
        "jax": "0.11.2",
        "seed": 3,
        "curve": [{"step": 2_000, "wer": 0.9, "cer": 0.5}, {"step": 4_000, "wer": 0.7, "cer": 0.3}],
        "ablation": [{"name": "greedy"} | score, {"name": "language model"} | score],
        "test": [{"name": "language model"} | score],
    }
    (tmp_path / "english_small_search.json").write_text(json.dumps(record))
    files = build(tmp_path)
    assert set(files) == {
        "results.md",
        *(f"results_english_small_{name}.svg" for name in ("curve", "ablation", "test")),
    }
    assert "| `results/english_small_search.json` | 2026-01-01 | cpu | `python train.py` |" in files["results.md"]
