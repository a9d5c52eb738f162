"""train.py, killed at a step and resumed, alone or as one of two processes: it ends as an undisturbed run does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from sender import signal_at
from small_training import arrays, assert_same

from conformer.config import Config, ConfigError
from conformer.training.checkpoint import Checkpoints
from conformer.training.processes import LOST, join
from conformer.training.state import initial_state

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 12
WRITE = "conformer.training.metrics:MetricsLog.write"  # of a step's line in metrics.jsonl, and of an evaluation's
HANGS_SECONDS = 1_800  # a busy machine may be slow; only what never ends takes so long
QUICKLY = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # a few steps: most of the time is LLVM's


def start(workdir: pathlib.Path, *flags: str, eval_every: int = 6, environment: Mapping[str, str] = os.environ):
    pytest.importorskip("espeakng_loader", reason="the embedded corpus needs pip install -e '.[demo]'")
    command = [sys.executable, "train.py", "--config=configs/tiny.py", f"--workdir={workdir}", *flags]
    values = {"num_steps": STEPS, "checkpoint_every": 3, "eval_every": eval_every}
    command += [f"--config.train.{key}={value}" for key, value in values.items()]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env={**environment, **QUICKLY}, text=True, **pipes)


def end(process: subprocess.Popen, status: int) -> tuple[str, str]:
    """Returns what a process wrote to standard output and standard error, once it has ended with `status`."""
    said = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == status, said
    return said


def rows(workdir: pathlib.Path, name: str) -> list[tuple[int, float]]:
    """Step and value, line by line of metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pathlib.Path:
    """A run from start to end; what it compiles, the others find in the cache of compiled functions."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert "starting at step 0" in end(start(workdir), 0)[0]
    assert [step for step, _ in rows(workdir, "loss")] == list(range(1, STEPS + 1))
    return workdir


def test_a_killed_run_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    """Parameters, averages and optimiser bit for bit; each step is logged once, with the same loss."""
    # Behind the lines of seven steps and an evaluation: checkpoint 3 is complete, 6 is half written or complete.
    end(start(tmp_path, environment=signal_at(WRITE, calls=8)), -signal.SIGKILL)
    assert [step for step, _ in rows(tmp_path, "loss")] == list(range(1, 8))
    out, _ = end(start(tmp_path), 0)
    assert "starting at step 3" in out or "starting at step 6" in out

    config = Config.from_json(tmp_path / "config.json")
    shapes = jax.eval_shape(lambda: initial_state(config, np.zeros(80), np.ones(80))[1])
    assert_same(*(arrays(Checkpoints(folder).restore(shapes, STEPS)) for folder in (undisturbed, tmp_path)))
    for name in ("loss", "eval_wer"):  # a loss is the mean since the line before, one step here
        assert rows(tmp_path, name) == rows(undisturbed, name)


def lose(workdir: pathlib.Path, index: int, to: str, calls: int) -> None:
    """Starts two processes, one of which ends, or is ended, at a step; checks what becomes of both."""
    with socket.socket() as port:  # bound to the end: nobody else gets it, though it can be shared
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port.bind(("127.0.0.1", 0))
        common = f"--coordinator=127.0.0.1:{port.getsockname()[1]}", "--num-processes=2"
        environments = {index: signal_at(WRITE, calls=calls, to=to), 1 - index: os.environ}
        lost, other = (
            start(workdir, *common, f"--process-id={i}", eval_every=100, environment=environments[i])
            for i in (index, 1 - index)
        )
        end(lost, -signal.SIGKILL if to == "parent" else 128 + signal.SIGKILL)
        _, errors = end(other, LOST)
    assert "another process of this run was lost" in errors.splitlines()[-1]


def test_two_processes_equal_one_and_a_lost_one_stops_the_other(undisturbed, tmp_path):
    """First the second is lost, with the process that started it; then the one that coordinates, by itself."""
    lose(tmp_path, 1, "parent", calls=7)  # of steps 1 to 7: checkpoint 3 is complete
    lose(tmp_path, 0, "process", calls=5)  # the fifth step since the checkpoint
    before = dict(rows(tmp_path, "loss"))
    assert max(before) in (8, 11)
    out, errors = end(start(tmp_path), 0)
    assert any(f"starting at step {step}" in out for step in (3, 6, 9)) and "resumes" not in errors
    after, expected = dict(rows(tmp_path, "loss")), dict(rows(undisturbed, "loss"))
    assert before[3] == after[3]  # it went on from a checkpoint
    assert list(after) == list(expected)
    np.testing.assert_allclose(list(after.values()), list(expected.values()), rtol=1e-4)


def test_incomplete_arguments_are_named():
    with pytest.raises(ConfigError, match="--num-processes and --process-id need --coordinator"):
        join(None, 2, None)
    with pytest.raises(ConfigError, match="needs --num-processes and --process-id, from 0 to one less"):
        join("localhost:1", 2, 2)
