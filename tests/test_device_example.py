"""examples/device/recognise.c: the features and the text of Python, on x86 and, under QEMU, on ARM."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile

from conformer.artefacts.card import load_cards
from conformer.artefacts.loading import load_artefact
from conformer.data import load_manifest
from conformer.filterbank import StreamingLogMel
from conformer.streaming import Recognizer

ROOT = pathlib.Path(__file__).parents[1]
ARTEFACT = ROOT / "models" / "words_micro" / "onnx_float32.onnx"
RATE = 16_000
# ONNX Runtime for ARM that QEMU 7.2 runs: 1.28 and 1.32 end there with a segmentation fault, before their first call.
ARM_PACKAGE = "onnxruntime==1.22.0"
ARM_ROOT = "/usr/aarch64-linux-gnu"

pytest.importorskip("onnxruntime")


def build(out: pathlib.Path, artefact: pathlib.Path = ARTEFACT, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "examples/device/build.py", str(artefact), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CFLAGS": "-Werror"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> list[str]:
    return compiled(tmp_path_factory.mktemp("device"), ARTEFACT)


def compiled(out: pathlib.Path, artefact: pathlib.Path) -> list[str]:
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    done = build(out, artefact)
    assert done.returncode == 0, done.stderr
    return [str(out / "recognise"), str(artefact)]


@pytest.fixture(scope="module")
def recordings(speech_data) -> list[np.ndarray]:
    """25 recordings of the words test set, as int16."""
    utterances = [u for u in load_manifest(speech_data / "connected_words_16k") if u.split == "test"][::3]
    return [np.round(u.samples(RATE) * 32767).astype(np.int16) for u in utterances]


@pytest.fixture(scope="module")
def expected(recordings) -> list[tuple[str, np.ndarray]]:
    """Text and features of each, by Python."""
    return recognised(ARTEFACT, recordings)


def recognised(artefact: pathlib.Path, recordings: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    recognizer = Recognizer(*load_artefact(artefact))
    features, results = load_cards(artefact.with_suffix(".json"))[0].features, []
    for samples in recordings:
        recognizer.reset()
        recognizer.accept(samples)
        text, log_mel = recognizer.finish(), StreamingLogMel(features)
        silence = np.zeros(int(features.trailing_silence * RATE), np.float32)
        frames = log_mel.accept(np.concatenate([samples.astype(np.float32) / 32768, silence]))
        results.append((text, np.concatenate([frames, log_mel.flush()])))
    return results


def agree(command: list[str], recordings, expected, folder: pathlib.Path, tolerance: float = 1e-3) -> None:
    path, features = folder / "speech.wav", folder / "features.f32"
    for samples, (text, log_mel) in zip(recordings, expected, strict=True):
        soundfile.write(path, samples, RATE, "PCM_16")
        done = subprocess.run([*command, path, features], capture_output=True, text=True, check=True)
        assert done.stdout == f"{text}\n" and text
        found = np.fromfile(features, np.float32).reshape(-1, log_mel.shape[1])
        np.testing.assert_allclose(found, log_mel, atol=tolerance)


def test_features_and_text_are_those_of_python(program, recordings, expected, tmp_path):
    assert len(recordings) >= 20
    agree(program, recordings, expected, tmp_path)


@pytest.mark.slow
def test_a_look_ahead_is_heard_as_in_python(looking_ahead, recordings, tmp_path):
    program = compiled(tmp_path, looking_ahead)
    agree(program, recordings[:8], recognised(looking_ahead, recordings[:8]), tmp_path)


def test_samples_from_standard_input_are_recognised(program, recordings, expected):
    done = subprocess.run([*program, "-"], input=recordings[0].tobytes(), capture_output=True, check=True)
    assert done.stdout.decode() == f"{expected[0][0]}\n"


@pytest.mark.slow
def test_without_doubles_the_text_is_the_same(program, recordings, expected, tmp_path):
    done = build(tmp_path, CFLAGS="-DREAL=float")
    assert done.returncode == 0, done.stderr
    agree([str(tmp_path / "recognise"), program[1]], recordings, expected, tmp_path, tolerance=1e-2)


@pytest.mark.parametrize("count", [0, 1, 100, 399, 400, 1000])
def test_there_may_be_hardly_any_audio(program, tmp_path, count):
    soundfile.write(tmp_path / "short.wav", np.full(count, 99, np.int16), RATE, "PCM_16")
    done = subprocess.run([*program, tmp_path / "short.wav"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.write_bytes(b"RIFF"), "is no WAV file"),
        (lambda path: soundfile.write(path, np.zeros((9, 2)), RATE, "PCM_16"), "must have one channel of 16-bit"),
        (lambda path: soundfile.write(path, np.zeros(9), 8000, "PCM_16"), "at the model's rate"),
        (lambda path: soundfile.write(path, np.zeros(9), RATE, "FLOAT"), "must have one channel of 16-bit"),
        (lambda path: None, "cannot be read: check its name"),
    ],
    ids=["cut", "stereo", "rate", "float", "missing"],
)
def test_audio_of_another_kind_is_one_line(program, tmp_path, write, message):
    path = tmp_path / "speech.wav"
    write(path)
    done = subprocess.run([*program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_model_that_it_cannot_run_is_refused(tmp_path):
    done = build(tmp_path, artefact=ARTEFACT.parent / "litert_int8.tflite")
    assert done.returncode == 1 and "recognise.c runs the ONNX step" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_on_arm(recordings, expected, tmp_path):
    compiler, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if not pathlib.Path(ARM_ROOT, "lib", "libstdc++.so.6").exists():
        pytest.skip(f"{ARM_ROOT} has no libstdc++")
    wheel = ["download", "-q", "--no-deps", "--only-binary=:all:", "--platform=manylinux_2_28_aarch64"]
    python = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    fetched = subprocess.run(
        [*python, *wheel, "--platform=manylinux_2_27_aarch64", "--python-version=312", f"-d{tmp_path}", ARM_PACKAGE],
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"{ARM_PACKAGE} for ARM cannot be had here")
    (package,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(package) as archive:
        (member,) = (name for name in archive.namelist() if "/libonnxruntime.so." in name)
        library = archive.extract(member, tmp_path)
    done = build(tmp_path, CC=compiler, ORT_LIBRARY=library)
    assert done.returncode == 0, done.stderr
    machine = [emulator, "-cpu", "max", "-L", ARM_ROOT, "-E", f"LD_LIBRARY_PATH={tmp_path}"]
    agree([*machine, str(tmp_path / "recognise"), str(ARTEFACT)], recordings[::4], expected[::4], tmp_path)
