"""Ctrl-C at any moment of a command is one line and exit status 130."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = [
    "bench",
    "convert",
    "cost",
    "demo",
    "eval",
    "export",
    "lm",
    "parity",
    "prepare",
    "report",
    "sweep",
    "train",
    "transcribe",
]
# Sends the signal when the module that is named begins to be imported: the same moment on any machine.
SENDER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored

class Sender:
    def find_spec(self, name, *_):
        if name == os.environ["INTERRUPTED_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Sender())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """What the interpreter imports when it starts."""
    folder = tmp_path_factory.mktemp("sender")
    (folder / "sitecustomize.py").write_text(SENDER)
    return folder


def check(folder: pathlib.Path, module: str, script: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder), "INTERRUPTED_AT": module}
    done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (130, "", f"{script}: interrupted\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_interrupted_while_it_is_imported(folder, command):
    check(folder, "argparse" if command == "demo" else "absl", f"{command}.py")


@pytest.mark.parametrize("module", ["json", "numpy", "soxr", "conformer.command"])
def test_at_any_import(folder, module):
    check(folder, module, "transcribe.py")


@pytest.mark.parametrize("module", ["jax", "conformer.streaming.engine", "orbax", "flax.nnx"])
def test_while_it_works(folder, module):
    """The network's packages are imported when the command has read its flags."""
    check(folder, module, "transcribe.py", "x.wav")


def test_every_command_is_covered():
    """Those that a user starts: each begins with the import that says what an interrupt does."""
    assert sorted(path.stem for path in ROOT.glob("*.py")) == COMMANDS
