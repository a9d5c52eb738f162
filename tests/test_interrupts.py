"""Ctrl-C at any moment of a command is one line and exit status 130; a reader that leaves ends it silently."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from sender import signal_at

from conformer import interrupts

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = [
    "bench",
    "convert",
    "cost",
    "demo",
    "eval",
    "evidence",
    "export",
    "lm",
    "parity",
    "prepare",
    "report",
    "serve",
    "sweep",
    "train",
    "transcribe",
]


def check(module: str, script: str, *arguments: str) -> None:
    command, environment = [sys.executable, script, *arguments], signal_at(module, signal.SIGINT)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (130, "", f"{script}: interrupted\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_interrupted_while_it_is_imported(command):
    check("argparse" if command == "demo" else "absl", f"{command}.py")


@pytest.mark.parametrize("module", ["json", "numpy", "soxr", "conformer.command"])
def test_at_any_import(module):
    check(module, "transcribe.py")


@pytest.mark.parametrize("module", ["jax", "conformer.streaming.engine", "flax.nnx"])
@pytest.mark.slow_but("jax", "conformer.streaming.engine")
def test_while_it_works(module):
    """The network's packages are imported when the command has read its flags."""
    check(module, "transcribe.py", "x.wav")


def test_every_command_is_covered():
    """All scripts that a user starts are tested here: each begins with the import that handles interrupts."""
    assert sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "setup") == COMMANDS


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_it_silently(unbuffered):
    """As `| head` does: the pipe is found broken when text is printed, or at the exit."""
    reading, writing = os.pipe()
    os.close(reading)
    command, environment = [sys.executable, "transcribe.py", "--help"], os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (interrupts.UNREAD, b"")


def test_another_broken_pipe_is_an_error():
    with pytest.raises(BrokenPipeError), interrupts.in_one_line():
        raise BrokenPipeError
