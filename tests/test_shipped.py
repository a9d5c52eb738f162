"""The recogniser of English that is shipped, as a newcomer meets it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from conformer.data.manifest import AudioFile, load_manifest
from conformer.evaluation.scorer import score

ROOT = pathlib.Path(__file__).parents[1]
WHEEL_FILES = """
from distutils.core import run_setup
build = run_setup("setup.py", stop_after="config").get_command_obj("build_py")
build.ensure_finalized()
print(*(f"{package} {name}" for package, folder, _, names in build.data_files for name in names), sep="\\n")
"""


def test_a_wheel_holds_the_models():
    command = [sys.executable, "-W", "ignore", "-c", f"import setuptools{WHEEL_FILES}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    held = set(done.stdout.splitlines())
    for model in (ROOT / "models").glob("*/weights.npz"):
        for name in ("weights.npz", "config.json", "tokens.txt", "bpe.model"):
            assert f"conformer.models.{model.parent.name} {name}" in held
    assert {"conformer.models.english_small books.lm", "conformer.models.words_micro onnx_int8.onnx"} <= held


@pytest.mark.slow
def test_the_default_of_transcribe_reads_english_with_its_own_language_model(speech_data, tmp_path):
    utterances = [u for u in load_manifest(speech_data / "libri_mini") if u.split == "dev"][::24]
    files, results = [u.audio.path for u in utterances if isinstance(u.audio, AudioFile)], tmp_path / "results.json"
    command = [sys.executable, "transcribe.py", f"--json={results}", *map(str, files)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # every word of the language model has a pronunciation, with espeak-ng or without
    texts = [record["text"] for record in json.loads(results.read_text())]
    assert score([u.text for u in utterances], texts).wer < 0.5
