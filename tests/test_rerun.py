"""Records made anew (evidence.py): by small programs in a project of their own."""

import datetime
import json
import pathlib
import textwrap

import pytest

from benchmarks import evidence, peers
from benchmarks.evidence import Entry, EvidenceError
from conformer.artefacts.formats import FORMATS

SINCE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
PROGRAM = """
import json, pathlib, sys
rows, path = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2].removeprefix("--json="))
if rows is None:
    sys.exit("measure.py: out of luck")
path.write_text(json.dumps({"date": "2026-02-01", "command": " ".join(sys.argv), "rows": rows}))
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> pathlib.Path:
    for name, value in {"ROOT": "", "RESULTS": "results", "HERE": "runs/evidence"}.items():
        monkeypatch.setattr(evidence, name, tmp_path / value)
    (tmp_path / "measure.py").write_text(textwrap.dedent(PROGRAM))
    return tmp_path


def add(project: pathlib.Path, name: str, rows: str, **more) -> Entry:
    """Writes a record of two rows, whose command measures `rows` now."""
    path = project / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = f"python measure.py {rows} --json=results/{name}.json"
    path.write_text(json.dumps({"date": "2025-12-31", "command": command, "rows": [1, 2]} | more))
    return next(entry for entry in evidence.entries() if entry.name == name)


def held(entry: Entry) -> dict:
    return json.loads(entry.path.read_text())


def test_a_record_is_made_anew_under_its_own_name(project):
    entry = add(project, "sweeps/some", "[3,4]")
    assert not entry.is_since(SINCE)
    evidence.rerun(entry, SINCE)
    assert held(entry)["rows"] == [3, 4] and "rerun_seconds" in held(entry)
    assert held(entry)["command"] == "measure.py [3,4] --json=results/sweeps/some.json"
    (again,) = evidence.entries()
    assert again.is_since(SINCE) and again.minutes is not None


@pytest.mark.parametrize("rows, said", [("null", "out of luck"), ("[3]", "lacks 1 rows"), ("'{\"a\":1}'", "lacks")])
def test_a_record_stays_where_its_command_fails_or_finds_less(project, rows, said):
    entry = add(project, "some", rows)
    before = held(entry)
    with pytest.raises(EvidenceError, match=said):
        evidence.rerun(entry, SINCE)
    assert held(entry) == before


def test_what_an_earlier_round_left_is_not_taken_for_this_ones(project):
    entry = add(project, "some", "[3,4]")
    output = evidence.HERE / "results" / "some.json"
    output.parent.mkdir(parents=True)
    output.write_text(json.dumps({"rows": [5, 6]}))
    entry = entry._replace(found=entry.found | {"command": "measure.py null --json=results/some.json"})
    with pytest.raises(EvidenceError):
        evidence.rerun(entry, SINCE)
    assert not output.exists()


def test_the_folder_of_an_earlier_sweep_is_set_aside_once(project):
    entry = add(project, "some", "[3,4]")
    more = " --sweep=some.py --workdir=runs/some"
    entry = entry._replace(found=entry.found | {"command": entry.found["command"] + more})
    folder = project / "runs" / "some"
    folder.mkdir(parents=True)
    evidence.rerun(entry, SINCE)
    assert not folder.exists() and (project / "runs" / "some.before-20260101-000000").exists()
    folder.mkdir()
    evidence.rerun(entry, SINCE)  # of the same round, which goes on
    assert folder.exists()


def test_what_a_record_needs_is_named(project, monkeypatch):
    def lack(command: str, **found) -> str | None:
        return evidence.lacks(Entry("some", {"command": command} | found))

    end = "--json=results/some.json"
    assert lack("python measure.py") == "its command writes no record (--json)"
    assert lack(f"gone.py {end}") == "gone.py does not exist"
    assert lack(f"measure.py --lm=books.lm {end}") == "books.lm is not there: " + evidence.HOW["books.lm"]
    assert lack(f"measure.py --source=. {end}") is None
    (project / "config.json").write_text('{"data": {"source": "../shared/data/some"}}')
    assert "../shared/data/some is not there" in str(lack(f"measure.py --workdir=. {end}"))
    assert lack(f"measure.py --workdir=. {end}", benchmark="silence") is None
    monkeypatch.setattr(peers, "ENVIRONMENT", project / "absent")
    assert "make peers" in str(lack(f"measure.py {end}", benchmark="training"))


def test_every_record_can_be_read_and_exports_what_it_compares():
    exported = {}
    for entry in evidence.entries():
        assert entry.weights in ("", "present") and entry.command[0] != "python"
        exported[entry.name] = list(evidence._exports(entry))
    assert exported.pop("parity_words_micro") == []  # those that are shipped
    assert len(exported["parity_words"]) == 10
    assert all({"--chunk-size=8", "--num-left-chunks=4"} <= set(words) for words in exported["parity_english_small"])
    for words in exported["parity_words"]:
        flags = dict(word.split("=") for word in words[1:])
        assert flags["--numerics"] in FORMATS[flags["--format"]].numerics and flags["--workdir"] == "models/words"
