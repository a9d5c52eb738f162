"""train.py as several processes: the same curve as one, and what is left when one of them is lost."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from conformer.config import ConfigError
from conformer.training.processes import LOST, join

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 16
HANGS_SECONDS = 1_800  # a busy machine may be slow; only what never ends takes so long
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_COMPILATION}


def start(workdir: pathlib.Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", "--config=configs/tiny.py", f"--workdir={workdir}", *flags]
    overrides = [
        f"--config.train.num_steps={STEPS}",
        "--config.train.eval_every=1000",
        "--config.train.checkpoint_every=3",
    ]
    return subprocess.Popen([*command, *overrides], cwd=ROOT, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE)


def start_two(workdir: pathlib.Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = f"--coordinator=127.0.0.1:{port}", "--num-processes=2"
    return [start(workdir, *common, f"--process-id={index}") for index in range(2)]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    path = workdir / "metrics.jsonl"
    lines = re.findall(r"^\{.*\}$", path.read_text(), re.MULTILINE) if path.exists() else []
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}


def lose(processes: list[subprocess.Popen], index: int, workdir: pathlib.Path, step: int) -> None:
    """Kills one process, and with it its child, after `step`; checks what becomes of the other."""
    while step not in losses(workdir):
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.05)
    processes[index].send_signal(signal.SIGKILL)
    processes[index].communicate()
    _, errors = processes[1 - index].communicate(timeout=HANGS_SECONDS)
    assert processes[1 - index].returncode == LOST, errors
    assert "another process of this run was lost" in errors.splitlines()[-1]


def test_two_processes_equal_one_and_a_lost_one_stops_the_other(tmp_path):
    """Twice a process is lost, first the second, then the one that coordinates; one process ends the run."""
    alone = start(tmp_path / "one")
    assert alone.communicate()[0] is None and alone.returncode == 0
    expected = losses(tmp_path / "one")
    assert list(expected) == list(range(1, STEPS + 1))

    workdir = tmp_path / "two"
    lose(start_two(workdir), 1, workdir, 5)
    lose(start_two(workdir), 0, workdir, 10)
    before = losses(workdir)
    alone = start(workdir)
    assert "resumes" not in alone.communicate()[1] and alone.returncode == 0
    after = losses(workdir)
    assert before.keys() - after.keys() == set() and before[3] == after[3]  # it went on from a checkpoint
    np.testing.assert_allclose([after[step] for step in expected], list(expected.values()), rtol=1e-4)


def test_incomplete_arguments_are_named():
    with pytest.raises(ConfigError, match="--num-processes and --process-id need --coordinator"):
        join(None, 2, None)
    with pytest.raises(ConfigError, match="needs --num-processes and --process-id, from 0 to one less"):
        join("localhost:1", 2, 2)
