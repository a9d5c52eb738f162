"""The commands as a user runs them, above all with input that they cannot use: one clear line, and status 1."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
from small_model import FEATURES, RATE, SIZES

from conformer.config import Config, ModelConfig, TrainConfig
from conformer.tokenizer import CharTokenizer
from conformer.training.checkpoint import Checkpoints
from conformer.training.state import initial_state

ROOT = pathlib.Path(__file__).parents[1]


def start(*command, **options) -> subprocess.Popen:
    pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment, **pipes | options)


def outcome(process: subprocess.Popen, data: bytes = b"") -> tuple[int, str, list[str]]:
    """Exit status, standard output, and the lines on standard error."""
    out, err = process.communicate(data)
    return process.returncode, out.decode(), err.decode().splitlines()


def run(*command, data: bytes = b"") -> tuple[int, str, list[str]]:
    return outcome(start(*command), data)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A model that was not trained: it hears nonsense, but takes the path of any other."""
    folder = tmp_path_factory.mktemp("model")
    config = Config(
        features=FEATURES,
        model=ModelConfig(**SIZES, vocab_size=9),
        train=TrainConfig(chunk_sizes=(0, 16)),
    )
    CharTokenizer(["<blk>", "▁", *"abcdefg"]).save(folder)
    (folder / "config.json").write_text(config.to_json())
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, initial_state(config, np.full(24, 8.0), np.full(24, 3.0))[1])
    checkpoints.wait()
    return folder


@pytest.fixture(scope="session")
def audio(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Files, by what is the matter with them."""
    folder = tmp_path_factory.mktemp("audio")
    names = ("mono", "stereo", "truncated", "empty", "headed", "text", "nan", "missing")
    paths = {name: folder / f"{name}.wav" for name in names}
    samples = (0.2 * np.random.default_rng(0).standard_normal(2 * RATE)).astype(np.float32)
    soundfile.write(paths["mono"], samples, RATE, subtype="PCM_16")
    soundfile.write(paths["stereo"], np.stack([samples, samples], 1), RATE, subtype="PCM_16")
    paths["truncated"].write_bytes(paths["mono"].read_bytes()[:9_000])
    paths["empty"].write_bytes(b"")
    soundfile.write(paths["headed"], samples[:0], RATE, subtype="PCM_16")
    paths["text"].write_text("this is not audio\n" * 50)
    samples[700] = np.nan
    soundfile.write(paths["nan"], samples, RATE, subtype="FLOAT")
    return paths


# -------------------------------------------------------------- transcribe.py


def test_files_that_cannot_be_read_cost_one_line_each_and_the_others_are_transcribed(workdir, audio, tmp_path):
    samples, _ = soundfile.read(audio["mono"], dtype="int16")
    names = [audio[name] for name in audio] + ["-"]
    results = tmp_path / "results.json"
    outputs = (f"--json={results}", f"--out-dir={tmp_path / 'texts'}")
    data = samples.astype("<i2").tobytes()
    status, out, err = run("transcribe.py", f"--workdir={workdir}", *outputs, *names, data=data)
    assert status == 1
    reasons = {
        "missing": "no such audio file",
        "truncated": "truncated",
        "empty": "cannot be decoded",
        "headed": "holds no samples",
        "text": "cannot be decoded",
        "nan": "holds NaN or infinite samples",
    }
    assert len(err) == len(reasons), err
    for name, reason in reasons.items():
        (line,) = [line for line in err if str(audio[name]) in line]
        assert line.startswith("transcribe.py: ") and reason in line
    records = json.loads(results.read_text())
    assert [record["source"] for record in records] == [*map(str, names)]
    records = [record for record in records if record["error"] is None]
    assert [record["source"] for record in records] == [str(audio["mono"]), str(audio["stereo"]), "-"]
    # The same samples in one channel, in two, and through a pipe.
    assert len({record["text"] for record in records}) == 1 and records[0]["audio_seconds"] == 2.0
    final = [line.split("final")[1].strip() for line in out.splitlines() if "final" in line]
    assert " ".join(final) == " ".join(record["text"] for record in records) != ""
    # Each has a file of its own; nothing is left of those that could not be read.
    texts = {path.stem: " ".join(path.read_text().split("\n")).strip() for path in (tmp_path / "texts").iterdir()}
    assert texts.keys() - {"truncated", "nan"} == {"mono", "stereo", "stdin"}
    assert {texts[name] for name in ("mono", "stereo", "stdin")} == {records[0]["text"]}


@pytest.mark.slow
def test_a_folder_without_a_model_is_named_by_every_command_that_needs_one(workdir, audio, tmp_path):
    """The commands start together, since most of their time is imports."""
    untrained, other = tmp_path / "untrained", tmp_path / "other"
    shutil.copytree(workdir, untrained, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(workdir, other)
    config = json.loads((other / "config.json").read_text())
    config["model"]["encoder_dim"] = 32
    (other / "config.json").write_text(json.dumps(config))

    expected = {
        ("transcribe.py", untrained): "holds no checkpoint: train first",
        ("eval.py", other): "is not a checkpoint of the model that config.json describes",
        ("eval.py", tmp_path / "nowhere"): "config.json does not exist: is",
    }
    for (script, folder), message in expected.items():
        names = [audio["mono"]] if script == "transcribe.py" else []
        status, _, err = run(script, f"--workdir={folder}", *names)
        assert status == 1 and len(err) == 1, err
        assert err[0].startswith(f"{script}: ") and message in err[0]


# -------------------------------------------------------------------- eval.py


def test_eval_scores_what_can_be_read_and_names_the_rest(workdir, audio, tmp_path):
    manifest, results = tmp_path / "manifest.jsonl", tmp_path / "results.json"
    rows = [
        {"id": name, "audio": str(audio[name]), "duration": 2.0, "text": "a bad cab", "split": "test"}
        for name in ("mono", "missing")
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "model"
    shutil.copytree(workdir, folder)
    errors, before = tmp_path / "errors.jsonl", sorted(folder.rglob("*"))
    outputs = (f"--json={results}", f"--errors={errors}")
    status, out, err = run("eval.py", f"--workdir={folder}", f"--manifest={manifest}", *outputs)
    assert (status, err) == (0, []) and sorted(folder.rglob("*")) == before
    assert "test: WER" in out and "not scored: missing:" in out
    record = json.loads(results.read_text())
    assert (record["utterances"], record["not_scored"], record["words"], record["step"]) == (1, 1, 3, 0)
    (error,) = map(json.loads, errors.read_text().splitlines())
    assert error["id"] == "mono" and error["ref"] == "a bad cab"


def test_eval_names_audio_files_that_are_all_missing(workdir, audio, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    rows = [{"id": id, "audio": f"{id}.wav", "duration": 1.0, "text": "a", "split": "test"} for id in "abcde"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = run("eval.py", f"--workdir={workdir}", f"--manifest={manifest}", f"--errors={tmp_path / 'errors'}")
    assert status == 1 and len(err) == 1
    assert err[0].startswith("eval.py: none of the 5 utterances can be read, as in a: ")
    assert f"{tmp_path / 'a.wav'}: no such audio file" in err[0] and not (tmp_path / "errors").exists()


def test_outputs_are_checked_before_the_work(workdir, tmp_path):
    """No model or corpus exists: a command that looked for it first would complain of that."""
    (tmp_path / "file").touch()
    none, model, speech = tmp_path / "none" / "x", f"--workdir={tmp_path / 'model'}", tmp_path / "speech"
    expected = {
        ("eval.py", model, f"--json={none}"): f"{none} cannot be written, {none.parent} does not exist",
        ("eval.py", model, f"--plot={tmp_path / 'x.svg'}"): "--plot shows streams: add --streaming",
        ("lm.py", f"--manifest={speech}", f"--out={none}"): f"{none} cannot be written",
        ("export.py", model, "--format=onnx", f"--out={tmp_path / 'file' / 'x'}"): "file is a file: name another",
        ("prepare.py", speech, tmp_path / "file"): "file is a file: name another",
        ("report.py", "results"): "results is no flag, and it takes no names",
    }
    for command, process in [(command, start(*command)) for command in expected]:
        status, _, err = outcome(process)
        assert status == 1 and len(err) == 1 and expected[command] in err[0], err


@pytest.mark.slow
def test_eval_names_chunk_sizes_that_it_cannot_use_and_warns_of_those_not_trained_for(workdir, audio, tmp_path):
    status, _, err = run("eval.py", f"--workdir={workdir}", "--streaming", "--chunk-size=8,a")
    assert status == 1 and err == ["eval.py: --chunk-size=8,a must hold whole numbers of at least 1, as in 8,16,32"]
    manifest, results = tmp_path / "manifest.jsonl", tmp_path / "results.json"
    row = {"id": "mono", "audio": str(audio["mono"]), "duration": 2.0, "text": "a bad cab", "split": "test"}
    manifest.write_text(json.dumps(row) + "\n")
    folder = tmp_path / "model"
    shutil.copytree(workdir, folder)
    status, out, err = run(
        "eval.py",
        f"--workdir={folder}",
        f"--manifest={manifest}",
        "--streaming",
        "--masked",
        "--chunk-size=16,5",
        f"--json={results}",
    )
    assert status == 0 and len(err) == 1
    assert err[0].startswith("eval.py: warning: chunk_size=5 is not one of train.chunk_sizes=(0, 16)")
    assert "offline" in out and "640 ms" in out and "200 ms" in out
    record = json.loads(results.read_text())
    assert record["real_time_factor"] > 0
    for figures, masked in zip(record["streaming"], record["masked"], strict=True):
        assert (figures["chunk_size"], figures["wer"]) == (masked["chunk_size"], masked["wer"])
        p50, p95, p99 = figures["chunk_ms"]
        assert 0 < p50 <= p95 <= p99
        look_ahead = 0.045  # seconds, of the front end and the last analysis window
        waited = figures["latency_seconds"] - p95 / 1000
        assert waited == pytest.approx(figures["chunk_size"] * 0.04 + look_ahead)


@pytest.mark.slow
def test_eval_searches_with_a_model_that_lm_trained_and_keeps_the_best_of_a_grid(workdir, audio, tmp_path):
    manifest, results, lm = tmp_path / "manifest.jsonl", tmp_path / "results.json", tmp_path / "words.arpa"
    texts = {"train": "a bad cab", "dev": "a bad fad"}
    rows = [
        {"id": split, "audio": str(audio["mono"]), "duration": 2.0, "text": text, "split": split}
        for split, text in texts.items()
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = run("lm.py", f"--manifest={manifest}", "--order=2", f"--out={lm}")
    assert (status, err) == (0, [])
    assert "order 2, 6 + 4 n-grams" in out and "dev: perplexity" in out and "33.3% of 3 words unknown" in out
    (further := tmp_path / "further.txt").write_text("abcdef\nBad cafe\r\na bad fad\nface 7\n")
    units = (f"--manifest={manifest}", f"--text={further}", f"--workdir={workdir}", f"--out={tmp_path / 'units.arpa'}")
    status, out, err = run("lm.py", *units)
    strange = "they hold characters that the tokenizer has not: '7' once"
    assert status == 0 and err == [
        f"lm.py: warning: 1 of 4 texts of --text are left out: {strange}",
        "lm.py: warning: texts to learn from that share 8 words in a row, or all their words, with dev: 1",
    ]
    assert (
        "weights: transcripts 0." in out
        and "0.0% of 9 words unknown" in out
        and "▁" in (tmp_path / "units.arpa").read_text()
    )

    folder = tmp_path / "model"
    shutil.copytree(workdir, folder)
    search = ("--beam-size=4", f"--lm={lm}", "--oov-rate=0.2")
    data = ("--split=dev", f"--manifest={manifest}")
    grid = ("--tune=lm-weight=0.2,5", "--tune=word-bonus=-1,0,9")
    evaluation = (f"--workdir={folder}", *data, *search, *grid, "--streaming", "--keep-search", f"--json={results}")
    status, out, err = run("eval.py", *evaluation)
    assert (status, err) == (0, [])
    assert "offline, beam 4" in out and "640 ms, beam 4" in out
    record = json.loads(results.read_text())
    (searched,), (greedy, streamed) = record["searched"], record["streaming"]
    assert len(record["tried"]) == 6
    best = min(record["tried"], key=lambda trial: (trial["errors"], trial["cer"]))
    assert searched["search"] == streamed["search"] == {name: best[name] for name in searched["search"]}
    assert searched["errors"] == best["errors"] and "search" not in record and "search" not in greedy
    assert searched["real_time_factor"] > 0
    status, out, err = run("eval.py", f"--workdir={folder}", *data, f"--json={results}")  # as the folder says
    assert (status, err) == (0, []) and json.loads(results.read_text())["searched"][0]["errors"] == best["errors"]
    status, out, err = run("eval.py", f"--workdir={folder}", *data, "--beam-size=0", f"--json={results}")
    assert (status, err) == (0, []) and "searched" not in json.loads(results.read_text())


def test_what_cannot_be_searched_or_learned_from_is_named_first(workdir, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"audio": "a.wav", "duration": 1.0, "text": "a"}\n')
    expected = {
        ("eval.py", f"--workdir={workdir}", "--beam-size=4", "--tune=lm-weight=1,2"): "another split than test: add",
        ("transcribe.py", f"--workdir={workdir}", "--lm=words.arpa", "x.wav"): "need a beam search: add --beam-size=8",
        ("lm.py", f"--manifest={manifest}", "--split=dev", "--out=words.arpa"): "'dev': --split may be train",
        (
            "lm.py",
            f"--manifest={manifest}",
            f"--workdir={workdir}",
            "--normalise=english",
            f"--out={tmp_path / 'words.arpa'}",
        ): "are of texts spelled basic: leave it out",
    }
    for command, process in [(command, start(*command)) for command in expected]:
        status, _, err = outcome(process)
        assert status == 1 and len(err) == 1, err
        assert err[0].startswith(f"{command[0]}: ") and expected[command] in err[0]


# ------------------------------------------------------------------- train.py


@pytest.mark.slow
def test_train_names_what_it_cannot_use(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"audio": "a.wav", "duration": 1.0, "text": "a"}\n{"audio": "b.wav", "duration": \n')
    tiny = ("--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}")
    expected = {
        (*tiny, "--config.model.encodr_dim=3"): "'model.encodr_dim'; did you mean 'model.encoder_dim'?",
        (*tiny, f"--config.data.source={manifest}"): f"{manifest}:2: not valid JSON",
        (*tiny, "--config.model.num_heads=5"): "model.num_heads=5 does not divide model.encoder_dim=32",
        ("--config=configs/nothing.py", tiny[1]): "--config=configs/nothing.py does not exist",
        ("--config=configs/librispeech.py:huge", tiny[1]): "huge: choose small, medium or large",
        (tiny[0],): "--workdir is required: --help says what for",
    }
    for arguments, message in expected.items():
        status, _, err = run("train.py", *arguments)
        assert status == 1 and len(err) == 1, err
        assert err[0].startswith("train.py: ") and message in err[0]


@pytest.mark.slow
def test_a_full_disk_stops_training_with_the_remedy(tmp_path):
    """The first checkpoint after the second meets it; the command then resumes from the first."""
    pytest.importorskip("espeakng_loader", reason="the embedded corpus needs pip install -e '.[demo]'")
    script = f"""
import runpy, sys
import orbax.checkpoint as ocp

save = ocp.CheckpointManager.save

def full(self, step, *args, **kwargs):
    if step == 8:
        raise OSError({errno.ENOSPC}, "No space left on device")
    return save(self, step, *args, **kwargs)

ocp.CheckpointManager.save = full
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
    status, _, err = run("-c", script, "--config=configs/tiny.py", f"--workdir={tmp_path}")
    assert status == 1 and not any("Traceback" in line for line in err), err
    assert err[-1].startswith("train.py: could not write checkpoint 8 to ")
    assert "No space left on device" in err[-1] and "it resumes from step 4" in err[-1]
