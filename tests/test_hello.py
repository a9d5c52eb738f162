"""`make hello` recognises the project's own recordings, with no more packages than it installs."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
WITHOUT_THE_REST = """
import sys
for name in ("flax", "grain", "jax", "jaxlib", "jaxtyping", "jiwer", "optax", "orbax", "tensorboardX", "tqdm"):
    sys.modules[name] = None
import runpy
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_hello_hears_every_word_without_jax():
    recordings = sorted(ROOT.glob("speech/hello/*.opus"))
    assert len(recordings) == 3 and sum(path.stat().st_size for path in recordings) < 100_000
    artefact = "--artefact=models/words_micro/onnx_int8.onnx"
    command = [
        sys.executable,
        "-c",
        WITHOUT_THE_REST,
        "transcribe.py",
        artefact,
        "--output=words",
        *map(str, recordings),
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line.split() for line in process.stdout.splitlines()]
    assert process.returncode == 0, process.stderr
    assert [word for _, _, word in lines] == [word for path in recordings for word in path.stem.split("_")]
    assert all(0 <= float(start) < float(end) for start, end, _ in lines)


@pytest.mark.parametrize("command", [("transcribe.py", "speech/hello"), ("train.py", "--config=configs/tiny.py")])
def test_a_package_that_hello_does_not_install_is_named(tmp_path, command):
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError('No module named jax', name='jax')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    said = f"{command[0]}: the package jax is missing: `make setup` installs all that the project needs\n"
    assert (process.returncode, process.stderr) == (1, said)
