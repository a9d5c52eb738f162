"""docs/your_data.md: from recordings to a recogniser, what stops the way, and how a finished run goes on."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

import train
from conformer.config import Config, ConfigError, load_config
from conformer.data import DataError
from conformer.training.checkpoint import Checkpoints, load_model

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = ("Turn left in 200 metres.", "Turn right, please!", "Where\u2019s the station?", "No, STOP!", "Go on")
TINY = {
    "features.num_mel_bins": 24,
    "augment.speed_factors": (1.0,),
    "augment.noise_probability": 0.0,
    "data.batch_seconds": 4.0,
    "data.eval_splits": (),
    "model.encoder_dim": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.feed_forward_dim": 24,
    "model.subsampling_channels": 4,
    "train.num_steps": 2,
    "train.warmup_steps": 1,
    "train.log_every": 1,
}


@pytest.fixture
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def record(folder: pathlib.Path, count: int = 20) -> pathlib.Path:
    """Recordings of tones in noise, and their manifest: audio and text alone."""
    folder.mkdir()
    rows = []
    for number in range(1, count + 1):
        rng = np.random.default_rng(number)
        samples = np.sin(np.cumsum(rng.uniform(0.1, 1.0, 8).repeat(3_600))) + 0.1 * rng.standard_normal(28_800)
        soundfile.write(folder / f"{number:02}.wav", 0.3 * samples[: 25_600 + 400 * (number % 9)], 16_000)
        rows.append({"audio": f"{number:02}.wav", "text": TEXTS[number % len(TEXTS)]})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def own(manifest: pathlib.Path, **values) -> Config:
    return load_config(str(ROOT / "configs" / "own.py"), TINY | {"data.source": str(manifest)} | values)


@pytest.mark.slow
def test_twenty_recordings_are_trained_on_and_on(tmp_path, capsys, quick_compilation):
    manifest, workdir = record(tmp_path / "recordings"), tmp_path / "run"
    train.train(own(manifest), workdir)
    out = capsys.readouterr().out
    counts = re.search(r"no row names a split, drawn by id: (.*)", out)
    assert counts and sum(map(int, re.findall(r"\d+", counts[1]))) == 20 and "2 dev" in counts[1]
    assert "text.normalise=english, characters: 'adefghilmnoprstuw" in out and "data.bucket_seconds=1.8" in out
    config, _, tokenizer, step = load_model(workdir)
    assert step == 2 and tokenizer.level == "english" and config.data.bucket_seconds == (1.8,)

    # The folder has moved, and what is logged changes. Other keys and other recordings are refused by name.
    moved = manifest.parent.rename(tmp_path / "moved") / manifest.name
    with pytest.raises(ConfigError, match=r"values of seed, text\.normalise: choose another --workdir"):
        train.train(own(moved, **{"seed": 1, "text.normalise": "basic", "train.log_every": 7}), workdir)
    with pytest.raises(ConfigError, match=r"train\.num_steps: .* --config\.train\.num_steps=2 --extend=3"):
        train.train(own(moved, **{"train.num_steps": 5}), workdir)
    few = moved.with_name("few.jsonl")
    few.write_text("".join(moved.read_text().splitlines(keepends=True)[:19]))
    with pytest.raises(DataError, match=r"not the 1\d that .* began with: restore them"):
        train.train(own(few), workdir)

    for message in ("trained from step 2 to 3", "is trained to its end already: --extend=N trains it on"):
        train.train(own(moved, **{"train.log_every": 7}), workdir, extend=1)
        assert message in capsys.readouterr().out
    config = Config.from_json(workdir / "config.json")
    assert Checkpoints(workdir).latest_step() == config.train.num_steps == 3 and config.data.source == str(moved)
    with pytest.raises(ConfigError, match="is trained for 3 updates already: raise it"):
        train.train(own(moved), workdir, extend=0)
    with pytest.raises(ConfigError, match="has no run to be trained on: leave --extend out"):
        train.train(own(moved), tmp_path / "other", extend=1)


def test_losing_recordings_stops_before_training_and_leaves_the_folder_free(tmp_path):
    """Corrected, the same command may use the same work directory."""
    manifest, workdir = record(tmp_path / "recordings"), tmp_path / "run"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row | {"split": "train"} for row in rows]
    rows[0]["text"], rows[1]["audio"] = "...", "gone.wav"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"2 of 20 utterances .* data\.max_dropped_share=0\.05 allows") as error:
        train.train(own(manifest), workdir)
    assert "1 audio file does not exist: correct the paths" in str(error.value)
    assert "1 empty transcript: add the transcripts" in str(error.value)
    assert not (workdir / "config.json").exists()
    with pytest.raises(DataError, match=r"19 longer than the last of data\.bucket_seconds: cut them, or raise the"):
        train.train(own(manifest, **{"data.bucket_seconds": (0.9,)}), workdir)


@pytest.mark.slow
def test_the_page_is_true(tmp_path):
    """The commands of the page run in order, on recordings of tones, with a smaller model and for two updates."""
    record(tmp_path / "recordings")
    page = (ROOT / "docs" / "your_data.md").read_text()
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("python ")]
    assert [command[1] for command in commands] == [
        "train.py",
        "eval.py",
        "transcribe.py",
        "train.py",
        "lm.py",
        "eval.py",
    ]
    shown = {key: ",".join(map(str, value)) if isinstance(value, tuple) else value for key, value in TINY.items()}
    for _, script, *arguments in commands:
        if script == "train.py":
            arguments[0] = f"--config={ROOT / 'configs' / 'own.py'}"
            arguments += [f"--config.{key}={value}" for key, value in shown.items()]
            arguments = [argument.replace("--extend=500", "--extend=2") for argument in arguments]
        command = [sys.executable, str(ROOT / script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {"errors.jsonl", "words.arpa", "runs"} <= {path.name for path in tmp_path.iterdir()}
