"""`conformer.load` and what it gives: the examples of docs/api.md as they stand, what is taken, what is refused."""

import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile

import conformer
from conformer import console
from conformer.artefacts.card import load_cards
from conformer.audio import AudioError, check_rate

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
HELLO = sorted(ROOT.glob("speech/hello/*.opus"))
TEXTS = [path.stem.replace("_", " ") for path in HELLO]
(EXPORT,) = (example for example in EXAMPLES if ".export(" in example)
SLOW = [example for example in EXAMPLES if example == EXPORT or '"words"' in example]


@pytest.fixture(scope="module")
def model():
    return conformer.load(ROOT / "models" / "words_micro" / "onnx_int8.onnx")


@pytest.fixture(scope="module")
def speech():
    return soundfile.read(HELLO[0], dtype="float32")


def run(example, capsys):
    exec(compile(example, "docs/api.md", "exec"), {"__name__": "example"})
    return capsys.readouterr().out


def test_the_examples_that_need_no_jax(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    quick = [example for example in EXAMPLES if example not in SLOW]
    assert len(quick) == 3
    one, several, live = (run(example, capsys) for example in quick)
    assert one == "16000 left five right one\n"
    assert several.startswith("['zero one five eight', ")
    assert live.splitlines()[-1] == "segment: go right zero up" and len(live.splitlines()) > 2


@pytest.mark.slow
def test_the_examples_in_jax(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    first, hotwords = (run(example, capsys) for example in SLOW if example != EXPORT)
    assert first.startswith("go right zero up\n") and len(first.splitlines()) == 5 and hotwords == ""


@pytest.mark.slow
def test_the_example_of_an_export(capsys, monkeypatch, tmp_path):
    """Export itself takes a minute and has tests of its own: here it writes what was exported before."""

    from conformer.export import pipeline  # here: it takes JAX long to import

    def export(workdir, format, numerics, chunk_size, num_left_chunks, out, max_seconds, look_ahead):
        asked.append((workdir.name, format, numerics, chunk_size, num_left_chunks, max_seconds))
        shutil.copytree(workdir, out)
        return load_cards(out / f"{format}_{numerics}.json")[0]

    asked = []
    for name in ("models", "speech"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "export", export)
    assert run(EXPORT, capsys) == "go right zero up\n"
    assert asked == [("words_micro", "onnx", "int8", 16, 4, None)]


def test_an_import_loads_next_to_nothing():
    code = "import sys, conformer; print([name for name in ('jax', 'numpy', 'absl') if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


def test_an_artefact_runs_with_five_packages():
    others = ("absl", "flax", "grain", "jax", "jaxlib", "jaxtyping", "jiwer", "optax", "orbax", "tqdm", "yaml")
    code = f"import sys; sys.modules.update(dict.fromkeys({others}))\n" + EXAMPLES[1]
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "16000 left five right one\n", process.stderr


def test_samples_of_every_clear_kind_give_the_same_text(model, speech):
    samples, rate = speech
    kinds = (
        samples,
        (samples * 32767).astype(np.int16),
        samples.tolist(),
        np.stack([samples, samples]),
        np.stack([samples, samples], axis=1),
    )
    assert [result.text for result in model.transcribe(kinds, sample_rate=rate)] == [TEXTS[0]] * len(kinds)
    assert model.transcribe(samples[::2].copy(), sample_rate=rate // 2).text == TEXTS[0]
    assert [result.text for result in model.transcribe([str(path) for path in HELLO])] == TEXTS
    assert model.transcribe(HELLO[1]).seconds == pytest.approx(soundfile.info(HELLO[1]).duration, abs=0.01)


@pytest.mark.parametrize(
    "audio, message",
    [
        ("absent.wav", "absent.wav: no such audio file"),
        ([HELLO[0], "absent.wav"], "absent.wav: no such audio file"),
        ([], "holds no samples"),
        ([1, 2, 3], "samples of type int64: their scale is not clear: pass float32"),
        ([np.zeros(9, np.float32), np.zeros(9, np.uint8)], "recording 1: samples of type uint8: their scale"),
        (np.zeros((9, 9), np.float32), "not clear which axis the channels are: pass one channel"),
        (np.full(9, np.nan, np.float32), "NaN"),
        (iter([0.5]), "samples are one list_iterator: pass an array of float32"),
        (None, "samples are one NoneType"),
    ],
)
def test_other_audio_is_refused_before_any_work(model, monkeypatch, audio, message):
    monkeypatch.setattr(model, "stream", None)  # none is begun
    with pytest.raises(AudioError, match=re.escape(message)):
        model.transcribe(audio)


@pytest.mark.parametrize("rate", [0, -16000, float("nan"), float("inf"), "16000", 10**9])
def test_what_is_no_sample_rate_is_refused(model, rate):
    integers: list[Any] = [
        lambda: model.transcribe(np.zeros(9, np.float32), rate),
        lambda: model.stream(sample_rate=rate),
    ]
    for use in [lambda: check_rate(rate), *(integers if isinstance(rate, int) else [])]:
        with pytest.raises(ValueError, match="is no number of Hz from 1,000 to 1,000,000"):
            use()


@pytest.mark.parametrize("confidence", [-0.1, 1.5, float("nan")])
def test_what_is_no_confidence_is_refused(model, confidence):
    with pytest.raises(ValueError, match="is no probability: choose one from 0 to 1"):
        model.stream(min_confidence=confidence)


def test_no_segment_is_lost_where_the_apps_own_function_raises(model, speech):
    def once(segment):
        told.append(segment.text)
        if len(told) == 1:
            raise KeyError("the app's own")

    told: list[str] = []
    stream = model.stream(on_segment=once)
    pause = np.zeros(2 * speech[1], np.float32)
    with pytest.raises(KeyError, match="the app's own"):
        stream.accept(np.concatenate([speech[0], pause, speech[0], pause]))
    stream.finish()
    assert told == [TEXTS[0]] * 2


def test_streams_of_one_model_do_not_disturb_each_other(model):
    heard: list[list[str]] = [[] for _ in HELLO]
    streams = [model.stream(on_segment=lambda segment, to=to: to.append(segment.text)) for to in heard]
    blocks = [np.array_split(soundfile.read(path, dtype="float32")[0], 20) for path in HELLO]
    for piece in zip(*blocks, strict=True):
        for stream, block in zip(streams, piece, strict=True):
            stream.accept(block)
    for stream in streams:
        stream.finish()
    assert heard == [[text] for text in TEXTS]


def test_what_cannot_be_loaded_is_named_with_the_remedy(model, tmp_path, monkeypatch):
    artefact = ROOT / "models" / "words_micro" / "onnx_int8.onnx"
    cases: tuple[tuple[Any, dict[str, Any], str], ...] = (
        ("wrods", {}, "wrods does not exist: .* english_small, words, words_micro"),
        (artefact, {"chunk_size": 8}, "chunk_size does not go with an artefact: .* export it again"),
        (artefact, {"beam": 8}, "load has no option beam"),
        (artefact, {"beam_size": 8, "hotwords": "go"}, r"hotwords='go' is one text: .* \('go',\)"),
        (artefact, {"beam_size": 8, "lm_weight": 1.0}, "lm_weight weighs a language model, and none is named"),
        (tmp_path, {}, str(tmp_path)),
    )
    for name, options, message in cases:
        with pytest.raises(ValueError, match=message):
            conformer.load(name, **options)
    with pytest.raises(ValueError, match="an artefact cannot be exported again: load the work directory"):
        model.export(tmp_path)
    monkeypatch.setitem(sys.modules, "conformer.training.checkpoint", None)  # as where JAX is not installed
    with pytest.raises(ValueError, match=r"runs in JAX, and the package .* is missing"):
        conformer.load("words")


def test_the_console_command_runs_the_scripts(monkeypatch):
    command = [sys.executable, "-c", "from conformer.console import main; main()"]
    process = subprocess.run([*command, "transcribe"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.startswith("transcribe.py: name audio files")
    monkeypatch.setattr(sys, "argv", ["edge-conformer", "sing"])
    with pytest.raises(SystemExit, match="there is no command 'sing'"):
        console.main()
    assert all((ROOT / f"{name}.py").is_file() for name in console.COMMANDS)
