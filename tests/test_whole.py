"""Whole recordings: as artefacts beside what the reference implementations computed, and in the recogniser."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from conformer.artefacts.card import load_cards
from conformer.artefacts.formats import FORMATS, ExportError
from conformer.artefacts.loading import load_artefact, load_runtimes
from conformer.checkpoints.convert import read_checkpoint
from conformer.config import FeatureConfig
from conformer.data import load_manifest
from conformer.export import pipeline
from conformer.export.formats import check_request
from conformer.export.parity import REFERENCE, Parity
from conformer.lengths import PADDINGS, Lengths
from conformer.streaming import Framing, Recognizer, StreamError, Windows, windows_of
from conformer.training.checkpoint import load_model
from tests.test_checkpoints_golden import CONFORMER, FASTCONFORMER, PARAKEET, WENET, read_golden
from tests.test_export import make_model, sound, workdir  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow  # an export each

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 4.5  # a little more than the longest utterance of the references
ARTEFACTS = [
    *((name, format, "float32") for name in (PARAKEET, CONFORMER) for format in ("onnx", "litert")),
    (CONFORMER, "jax", "float32"),
    *((name, "onnx", "int8") for name in (PARAKEET, CONFORMER)),
    (PARAKEET, "litert", "int8"),
]


def needs(format: str) -> None:
    for package in FORMATS[format].interpreters + FORMATS[format].converters:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def exported(golden, tmp_path_factory):
    """export(checkpoint, format, numerics, seconds) -> card, folder, work directory; each is made once."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def export(name: str, format: str, numerics: str, seconds: float = SECONDS):
        needs(format)
        imported = folder / name.split("/")[0]
        if not imported.exists():
            read_checkpoint(golden / name).save(imported)
        out = folder / f"{imported.name}_{seconds:g}"
        return pipeline.export(imported, format, numerics, 16, 4, out, seconds), out, imported

    return export


def run(card, folder, features):
    """Log-probabilities of a recording that is given by its features, and the artefact that computed them."""
    runtime = load_runtimes(card.format, folder / card.file, card.geometry, card.features)[""]
    lead, num_frames = card.geometry.lengths.lead, card.geometry.lengths.output_lengths(len(features))
    window = np.zeros((card.geometry.window, features.shape[1]), np.float32)
    window[lead : lead + len(features)] = features
    return runtime(window[None], np.array([num_frames]))[0, :num_frames], runtime, window


@pytest.mark.parametrize("name, format, numerics", ARTEFACTS)
def test_artefacts_compute_what_the_reference_did(exported, golden, name, format, numerics):
    """Compares all utterances of the reference: each has another length, and so another padding."""
    card, folder, _ = exported(name, format, numerics)
    assert (card.geometry.kind, card.state_bytes, card.name) == ("whole", 0, f"{format}_{numerics}_whole")
    stored = read_golden(golden / name, card.geometry.vocab_size)
    log_probs = stored.outputs[0, -1][1]
    for row, length in enumerate(stored.feature_lengths):
        found = run(card, folder, stored.features[row, :length])[0]
        expected = log_probs[row, : stored.lengths[row]]
        assert len(found) == stored.lengths[row]
        if numerics == "float32":
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        else:
            divergence = (np.exp(expected) * (expected - found)).sum(-1).mean()
            average = np.log(np.exp(expected).mean(0))
            ignorant = (np.exp(expected) * (expected - average)).sum(-1).mean()  # of a model that hears nothing
            assert 0 < divergence < ignorant / 20


@pytest.mark.parametrize("name", [PARAKEET, CONFORMER, WENET])
def test_neither_the_size_of_a_window_nor_what_lies_outside_matters(exported, golden, name):
    features = read_golden(golden / name, 2).features[1, :200]
    card, folder, _ = exported(name, "onnx", "float32")
    found, runtime, window = run(card, folder, features)
    card, folder, _ = exported(name, "onnx", "float32", 6.0)
    longer = run(card, folder, features)[0]
    np.testing.assert_allclose(longer, found, rtol=0, atol=1e-4)
    inputs = runtime._whole_inputs(window, len(found))
    end = runtime.framing.end(window, len(found))
    inputs["window"] = np.concatenate([window[:end], np.full_like(window[end:], 9.0)])
    np.testing.assert_allclose(runtime._whole(inputs)[: len(found)], found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [WENET, FASTCONFORMER])
@pytest.mark.filterwarnings("ignore:0 is not one of train.chunk_sizes")
def test_models_that_stream_are_exported_whole_too(exported, golden, name):
    card, folder, _ = exported(name, "onnx", "float32")
    assert card.check < 1e-4
    if name == WENET:
        stored = read_golden(golden / name, card.geometry.vocab_size)
        found = run(card, folder, stored.features[0, : stored.feature_lengths[0]])[0]
        np.testing.assert_allclose(found, stored.outputs[0, -1][1][0, : len(found)], rtol=0, atol=1e-4)


@pytest.mark.parametrize("format", ["onnx"])
def test_a_learned_bias_and_a_step_share_a_folder(workdir, tmp_path, format):  # noqa: F811
    needs(format)
    whole = pipeline.export(workdir, format, "float32", 8, 2, tmp_path, 2.0)
    step = pipeline.export(workdir, format, "float32", 8, 2, tmp_path)
    assert whole.check < 1e-4 and step.check < 1e-4
    assert [card.geometry.kind for card in load_cards(tmp_path)] == ["step", "whole"]
    text = (tmp_path / "README.md").read_text()
    assert (
        "one step of a stream: 35 feature frames in" in text and f"python parity.py FOLDER/{whole.name}.json\n" in text
    )
    assert "`*_whole` takes a whole recording of at most 2.0 s" in text
    with pytest.raises(ExportError, match=r"onnx_float32.onnx of .* chunk_size=8, .* name another folder"):
        pipeline.export(workdir, "jax", "float32", 8, 3, tmp_path)  # its check would replace theirs
    assert f"`inside` float32 [{whole.geometry.chunk_size}, 1]" in text
    check = [sys.executable, "parity.py", str(tmp_path)]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr


@pytest.mark.parametrize("numerics", ["float32", "int8"])
def test_onnx_files_are_valid_as_saved(exported, numerics):
    card, folder, _ = exported(PARAKEET, "onnx", numerics)
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(str(folder / card.file), full_check=True)
    assert onnx.load(folder / card.file).ir_version == 8


def test_the_card_says_how_features_are_normalised(exported):
    card, folder, _ = exported(PARAKEET, "onnx", "float32")
    assert card.features.normalise and json.loads((folder / f"{card.name}.json").read_text())["features"]["normalise"]
    text = (folder / "README.md").read_text()
    assert "The host normalises each bin over the frames of the recording" in text
    assert "begins after 7 frames of zeros; `heard` is 1" in text


# ------------------------------------------------------------------ in use


def write_audio(golden, folder):
    """An utterance of the references, and it twice: longer than the artefacts take."""
    stored = np.load(golden / PARAKEET / "golden.npz")
    short, long = folder / "short.wav", folder / "long.wav"
    soundfile.write(short, stored["audio_2"], 16_000, subtype="PCM_16")
    soundfile.write(long, np.tile(stored["audio_2"], 2), 16_000, subtype="PCM_16")
    return short, long


def test_the_command_recognises_whole_recordings_and_says_which_are_too_long(exported, golden, tmp_path):
    card, folder, imported = exported(PARAKEET, "onnx", "float32")
    files, results = write_audio(golden, tmp_path), tmp_path / "results.json"
    command = [sys.executable, "transcribe.py", f"--json={results}"]

    def transcribe(*arguments):
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, capture_output=True, env=environment)
        return done.returncode, done.stderr.decode(), json.loads(results.read_text())

    status, errors, (short, long) = transcribe(f"--artefact={folder / card.file}", *files)
    assert status == 1 and errors.count("the recording is longer than the 4.6 s") == 1 and "Traceback" not in errors
    assert short["text"] and short["error"] is None
    assert long["text"] and "--max-seconds" in long["error"]
    status, errors, (own,) = transcribe(f"--workdir={imported}", files[0])
    assert (status, own["text"]) == (0, short["text"]), errors


def test_parity_measures_whole_artefacts(exported, golden, tmp_path):
    card, folder, imported = exported(PARAKEET, "onnx", "float32")
    short, long = write_audio(golden, tmp_path)
    lines = [{"audio": short.name, "text": "one", "split": "test"}, {"audio": long.name, "text": "two", "split": "dev"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = load_manifest(tmp_path / "data.jsonl")
    config, model, tokenizer, _ = load_model(imported)
    reference = pipeline.reference(config, model, card.geometry)
    parity = Parity(reference, tokenizer, [first])
    artefact = load_artefact(folder / card.file)[0]
    figures = parity.measure(artefact)
    assert figures["max_difference"] < 1e-4 and figures["wer_difference"] == figures["low"] == figures["high"] == 0
    assert parity.time({"artefact": artefact}).keys() == {REFERENCE, "artefact"}
    with pytest.raises(StreamError, match=r"longer than the 4\.6 s"):
        Parity(reference, tokenizer, [second])


def test_endpoints_are_looked_for_inside_a_recording():
    """A pause ends a segment as in a stream, however much is decoded at once."""
    from conformer.streaming import EndpointConfig
    from tests.small_model import RATE, TOKENIZER, make_config

    config = make_config()

    class Spoken:
        """Hears "a", a long pause, and "b"."""

        framing = Framing.of_whole(config.features, Lengths(4, 6), 6.0)
        batch_size, state_bytes = 1, 0

        def __call__(self, windows, num_frames, fresh=None):
            log_probs = np.full((1, self.framing.chunk_size, TOKENIZER.vocab_size), -9.0, np.float32)
            log_probs[..., 0] = 0.0
            for frame, unit in ((10, 2), (100, 3)):
                log_probs[0, frame, [0, unit]] = -9.0, 0.0
            return log_probs

        def reset(self):
            pass

        warm_up = reset

    recognizer = Recognizer(Spoken(), TOKENIZER, endpoint=EndpointConfig())
    rng = np.random.default_rng(0)
    recognizer.accept(0.1 * rng.standard_normal(5 * RATE).astype(np.float32))
    recognizer.finish()
    assert [segment.text for segment in recognizer.segments] == ["a", "b"]


# ------------------------------------------------------------------ sizes and refusals


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kind", ["kaldi", "kaldi_snipped", "nemo"])
def test_a_window_holds_the_longest_recording(kind, padding):
    features = FeatureConfig(kind=kind, trailing_silence=0.3 if kind == "kaldi" else 0.0)
    for factor, right in ((4, 6), (8, 14)):
        for seconds in (0.02, 0.77, 3.0):
            framing = Framing.of_whole(features, Lengths(factor, right, padding), seconds)
            assert seconds <= framing.longest < seconds + 0.3
            for rate in (8_000, 16_000, 44_100):
                windows = Windows(framing, rate)
                windows.accept(np.zeros(int(framing.longest * rate), np.float32))
                windows.end()
                windows.next_window()
                assert windows.finished  # one window, or audio that is too short for a frame


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_end_of_a_recording_is_found_in_its_window(padding):
    features = FeatureConfig(kind="nemo")
    framing = Framing.of_whole(features, Lengths(8, 14, padding), 1.0)
    lead = framing.lengths.lead
    for frames in range(1 if lead else 15, 100):
        count = framing.num_frames(frames)
        window = np.zeros((framing.window, 80), np.float32)
        window[lead : lead + frames] = 1.0
        end = framing.end(window, count) - lead
        assert end == frames or (not lead and framing.num_frames(end) == count)
        silent = framing.end(np.zeros_like(window), count) - lead  # digital silence, normalised
        assert framing.num_frames(silent) == count and framing.num_frames(silent - 1) < count


def test_what_is_longer_is_cut_with_an_error():
    framing = Framing.of_whole(FeatureConfig(), Lengths(4, 6), 1.0)
    windows = Windows(framing)
    windows.accept(sound(0.9, 0))
    with pytest.raises(StreamError, match=r"longer than the 1\.0 s that this model takes as a whole: cut it"):
        windows.accept(sound(0.9, 1))
    windows.end()
    window = windows.next_window()
    assert window is not None and windows.finished
    (same,) = windows_of(framing, np.concatenate([sound(0.9, 0), sound(0.9, 1)])[: int(framing.longest * 16_000)])
    np.testing.assert_allclose(window.features, same.features, rtol=0, atol=1e-5)


def test_requests_that_cannot_be_met_name_the_alternatives(golden, monkeypatch):
    config = read_checkpoint(golden / PARAKEET).config
    with pytest.raises(ExportError, match="or export it for whole recordings: add --whole"):
        check_request(config, "onnx", "float32", 16, 4)
    for format, numerics in (("coreml", "float16"), ("tflite-micro", "int8")):
        with pytest.raises(ExportError, match="export whole recordings for onnx, litert, jax"):
            check_request(config, format, numerics, 16, 4, 10.0)
    with pytest.raises(ExportError, match="ranges from streams: export whole recordings with int8"):
        check_request(config, "onnx", "int8-static", 16, 4, 10.0)
    for seconds in (0.0, -1.0, 1e4, float("nan")):
        with pytest.raises(ExportError, match=r"--max-seconds=.* must lie within 0 and 300"):
            check_request(config, "jax", "float32", 16, 4, seconds)
    streaming, _ = make_model()
    check_request(streaming, "jax", "float32", 16, 4, 10.0)
    with pytest.warns(UserWarning, match="not trained for whole recordings"):
        check_request(streaming.replace({"train.chunk_sizes": (8,)}), "jax", "float32", 8, 2, 10.0)


def test_flags_of_the_other_kind_are_refused(tmp_path):
    command = [sys.executable, "export.py", f"--workdir={tmp_path}", "--format=jax", f"--out={tmp_path}"]
    for flags, match in (
        (["--whole", "--chunk-size=8"], "--chunk-size goes not with --whole"),
        (["--max-seconds=5"], "--max-seconds goes only with --whole"),
    ):
        done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and match in done.stderr and "Traceback" not in done.stderr
