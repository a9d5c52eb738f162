"""Sweeps: resumed after kills, trials that fail or were changed, one table of all."""

import csv
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import soundfile
from sender import signal_at
from small_model import TOKENIZER, make_config, random_model

from conformer.charts import Point, intervals, lines
from conformer.config import Config, ConfigError, load_config
from conformer.sweep import Sweep, SweepError, Trial, load_sweep, run_sweep, schedule
from conformer.sweep.paired import paired
from conformer.sweep.table import page
from conformer.training.checkpoint import save_weights

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
SWEEPS = sorted(ROOT.glob("configs/sweeps/*.py"))
WRITE = "conformer.training.metrics:MetricsLog.write"  # after every second step of a training
LAUNCH = "conformer.sweep.schedule:_launch"  # of a process

CONFIG = """
from conformer.config import AugmentConfig, Config, DataConfig, FeatureConfig, ModelConfig, TokenizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        features=FeatureConfig(sample_rate=8_000, num_mel_bins=24, high_freq=3_800.0),
        augment=AugmentConfig(num_freq_masks=0, num_time_masks=0),
        data=DataConfig(source={manifest!r}, eval_splits=(), batch_seconds=4.0, bucket_seconds=(1.0,)),
        tokenizer=TokenizerConfig(kind="char"),
        model=ModelConfig(subsampling_channels=4, encoder_dim=16, num_layers=1, num_heads=2, feed_forward_dim=24),
        train=TrainConfig(num_steps=6, warmup_steps=1, chunk_sizes=(0, 8), log_every=2, checkpoint_every=2),
    )
"""
# A training that two trials share, and a model that is there already.
SWEEP = """
from conformer.sweep import Sweep, Trial

SEARCH = {{"beam_size": 2, "hotwords": ("bad cab", "a")}}


def get_sweep() -> Sweep:
    return Sweep(
        "Five trials, of six processes.",
        (
            Trial("trained", config={config!r}),
            Trial("trained_int8", config={config!r}, numerics="int8"),
            Trial("streams", model={model!r}, chunk_sizes=(4,)),
            Trial("otherwise", model={model!r}, numerics="bfloat16", execution="channels_first", split="dev"),
            Trial("searched", model={model!r}, chunk_sizes=(4,), masked=True, search=SEARCH),
        ),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A sweep, its config, a model that was not trained, and a few noises."""
    folder = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    rows = []
    for index, split in enumerate(["train"] * 8 + ["dev"] * 2 + ["test"] * 3):
        soundfile.write(folder / f"{index}.wav", 0.2 * rng.standard_normal(6_400), 8_000)
        text = " ".join(rng.choice(["a", "bad", "cab"], 3))
        rows.append({"id": str(index), "audio": f"{index}.wav", "duration": 0.8, "text": text, "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.py").write_text(CONFIG.format(manifest=str(folder / "manifest.jsonl")))
    config, model = make_config(causal_conv=True), folder / "model"
    config = config.replace({"data.source": str(folder / "manifest.jsonl")})
    model.mkdir()
    (model / "config.json").write_text(config.to_json())
    TOKENIZER.save(model)
    save_weights(model, random_model(config, seed=1, vectors=0.3), 7)
    (folder / "sweep.py").write_text(SWEEP.format(config=str(folder / "config.py"), model=str(model)))
    return folder


def start(folder: pathlib.Path, workdir: pathlib.Path, environment: Mapping[str, str] = os.environ) -> subprocess.Popen:
    command = [sys.executable, "sweep.py", f"--sweep={folder / 'sweep.py'}", f"--workdir={workdir}", "--jobs=2"]
    environment = {**environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # a few steps: most of the time is LLVM's
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


@pytest.fixture(scope="module")
def undisturbed(folder) -> pathlib.Path:
    """The finished sweep."""
    workdir = folder / "undisturbed"
    process = start(folder, workdir)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return workdir


def table(workdir: pathlib.Path) -> list[dict]:
    """Everything in table.csv but measured times."""
    rows = csv.DictReader((workdir / "table.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if not key.startswith("measured_")} for row in rows]


def test_a_sweep_killed_twice_and_interrupted_has_the_table_of_an_undisturbed_one(folder, undisturbed):
    whole = undisturbed
    expected = table(whole)
    steps = [(row["trial"], row["mode"], int(row["step"])) for row in expected]
    assert steps == [
        ("trained", "offline", 6),
        ("trained_int8", "offline", 6),
        ("streams", "offline", 7),
        ("streams", "160 ms", 7),
        ("otherwise", "offline", 7),
        ("searched", "offline, beam 2", 7),
        ("searched", "160 ms, masked, beam 2", 7),
    ]
    assert [path.parent.name for path in whole.glob("*/checkpoints")] == ["trained"]

    workdir = folder / "killed"
    finished: dict[pathlib.Path, int] = {}
    # With all its processes: by its training, in the middle of it, then when it has started a third process.
    for point, calls in ((WRITE, 2), (LAUNCH, 3)):
        process = start(folder, workdir, signal_at(point, calls=calls, to="group"))
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, out
        finished |= {path: path.stat().st_mtime_ns for path in workdir.glob("*/trial.json")}
        assert len(finished) < 5
    # As Ctrl-C, which a shell may have told its background to ignore.
    process = start(folder, workdir, signal_at(LAUNCH, signal.SIGTERM))
    out, _ = process.communicate()
    assert process.returncode == 130 and "interrupted; the same command resumes" in out
    for path in workdir.glob("*/lock"):
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where a process still runs
    process = start(folder, workdir)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert table(workdir) == expected
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())  # none was run again
    for form in ("table.md", "index.html", "sweep.json"):
        assert (workdir / form).stat().st_size > 0


def test_a_trial_that_fails_is_named_with_its_log_and_the_others_are_finished(folder, undisturbed, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir, said = undisturbed, []
    model = str(folder / "model")
    sweep = Sweep("", (Trial("bad", model=model, split="nothing"), Trial("good", model=model, split="dev")))
    failures = run_sweep(sweep, workdir, sweep.trials, 1, said.append)
    assert list(failures) == ["bad"]
    assert "nothing" in failures["bad"] and str(workdir / "bad" / "eval.log") in failures["bad"]
    record = json.loads((workdir / "good" / "trial.json").read_text())
    assert len(record["rows"]) == 1 and record["rows"][0]["utterances"] == 2
    assert "2 of 2 trials done, 1 of them failed" in said[-1]


def test_a_trial_that_another_process_works_on_waits_for_its_end(folder, tmp_path, monkeypatch):
    """The end comes when the other trial has failed, as every process does that this sweep starts."""

    def launch(job, *_) -> subprocess.Popen:
        job.log.touch()
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    monkeypatch.setattr(schedule, "_launch", launch)
    said, held = [], tmp_path / "held"
    sweep = Sweep("", tuple(Trial(name, model=str(folder / "model")) for name in ("held", "free")))
    held.mkdir()
    with (held / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def hear(line: str) -> None:
            said.append(line)
            if "1 of them failed" in line:
                assert not (held / "eval.log").exists()
                fcntl.flock(lock, fcntl.LOCK_UN)

        assert list(run_sweep(sweep, tmp_path, sweep.trials, 1, hear)) == ["free", "held"]
    assert sum("another process is at work in" in line for line in said) == 1


def test_a_finished_trial_that_was_changed_is_an_error_that_names_the_change(folder, undisturbed):
    config = str(folder / "config.py")
    changes = {
        "numerics": Trial("trained", config=config, numerics="int8"),
        "config.train.learning_rate": Trial("trained", config=config, overrides={"train.learning_rate": 1.0}),
    }
    for key, trial in changes.items():
        with pytest.raises(SweepError, match=f"trial trained was finished with other values of {key}: give the new"):
            run_sweep(Sweep("", (trial,)), undisturbed, (trial,), 1, print)


def test_sweeps_that_cannot_be_run_are_named():
    cases = {
        "holds no trial": (),
        "each name once": (Trial("a", config="configs/tiny.py"), Trial("a", config="configs/tiny.py")),
        "names are folders": (Trial("../a", config="configs/tiny.py"),),
        "give a config": (Trial("a"),),
        "trial a: unknown config key 'model.width'": (
            Trial("a", config="configs/tiny.py", overrides={"model.width": 1}),
        ),
        "trial a: --lm and --hotwords need a beam search": (
            Trial("a", config="configs/tiny.py", search={"lm": "words.arpa"}),
        ),
        "trial a: .*unexpected keyword argument 'beam'": (Trial("a", config="configs/tiny.py", search={"beam": 8}),),
        "trial a: numerics='int3'": (Trial("a", config="configs/tiny.py", numerics="int3"),),
        "trial a: nowhere/config.json does not exist": (Trial("a", model="nowhere"),),
    }
    for message, trials in cases.items():
        with pytest.raises(SweepError, match=message):
            Sweep("", trials)
    with pytest.raises(SweepError, match=r"nothing\.py does not exist"):
        load_sweep("nothing.py")


def test_overrides_have_the_types_of_their_fields():
    config = load_config("configs/tiny.py", {"train.learning_rate": 1, "model.encoder_dim": 48})
    assert (config.train.learning_rate, config.model.encoder_dim) == (1.0, 48)
    assert type(config.train.learning_rate) is float
    with pytest.raises(ConfigError, match=r"model\.encoder_dim='48' must be of type int"):
        load_config("configs/tiny.py", {"model.encoder_dim": "48"})
    with pytest.raises(ConfigError, match=r"model\.num_heads=5 does not divide"):
        load_config("configs/tiny.py", {"model.num_heads": 5})


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_are_shipped_can_be_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load_sweep(str(path))
    assert sum(map(len, sweep.models())) == len(sweep.trials) > 1
    assert all(isinstance(trial.resolve(), Config) for trial in sweep.trials)


def test_a_page_holds_all_it_needs_and_escapes_what_it_is_given():
    text = page("<title>", "a & b", [], {"t": "no <such> file"}, "python sweep.py")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "<such>" not in text and "a &amp; b" in text


def test_plots_keep_inside_their_frame():
    rows = [("a", 0.0, 0.0, 0.0), ("a longer name", 12.5, 3.0, 101.0)]
    points = {"left 4": [Point(0.4, 5.0, 3.0, 99.0, "320 ms"), Point(2.6, 0.0)], "one": [Point(1.0, 50.0)]}
    for svg in (
        intervals(rows, "word error rate (%)"),
        lines(points, "s", "%", {"whole": 3.0}),
        intervals(rows[:1], ""),
    ):
        for name in ("x1", "x2", "cx"):
            values = [float(part.split('"')[0]) for part in svg.split(f'{name}="')[1:]]
            assert all(0 <= value <= 640 for value in values)


def test_differences_are_paired_over_the_same_recordings(tmp_path):
    """Two trials that find the same recordings hard, of which one makes an error less in each; then other recordings,
    and another search.
    """
    hard = np.random.default_rng(0).integers(1, 6, 40)
    searches = {name: {"beam_size": 8 if name == "d" else 0} for name in ("a", "b", "c", "d", "failed")}
    for name, prefix, errors in (("a", "x", hard), ("b", "x", hard - 1), ("c", "y", hard), ("d", "x", hard)):
        lines = [
            {"id": f"{prefix}{i}", "ref": "one two three four five", "errors": int(n)} for i, n in enumerate(errors)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "errors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    (row,) = paired(tmp_path, searches)
    assert (row["trial"], row["baseline"]) == ("b", "a")
    assert row["wer_difference"] == row["low"] == row["high"] == pytest.approx(-0.2)
