"""Peers run in processes and an environment of their own, so that PyTorch is no dependency of this project.

`python -m benchmarks.peers` (`make peers`) makes that environment; `Peer` runs a module of this package in it.
Requests and replies are lines of JSON, arrays travel in npz files.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flax import nnx  # the kernels' benchmark runs without it

ROOT = pathlib.Path(__file__).resolve().parents[1]
REQUIREMENTS = pathlib.Path(__file__).with_name("peers-requirements.txt")
ENVIRONMENT = ROOT / ".venv-peers"
PYTHON_VERSION = (3, 11)  # PyTorch's CPU build is at hand for this one


class PeerError(ValueError):
    """The peers' environment is missing or a peer's process failed; the message says what to do."""


class Peer:
    """A module of `benchmarks` running as a process of its own, asked and answering line by line.

    Args:
        module: dotted name, such as "benchmarks.torch_peer.training".
        variables: added to the process's environment.
        python: the interpreter that runs it; None = that of the peers' environment.
        quiet: what the process says of its own is kept for the message of a PeerError, and not shown.

    Raises PeerError when there is no such interpreter.
    """

    def __init__(
        self,
        module: str,
        variables: dict[str, str] | None = None,
        python: str | os.PathLike | None = None,
        quiet: bool = False,
    ):
        self.module = module
        self._said = tempfile.TemporaryFile("w+", errors="replace") if quiet else None  # noqa: SIM115
        python = python or peers_python()
        try:
            self._process = subprocess.Popen(
                [python, "-m", module],
                cwd=ROOT,
                env={**os.environ, **(variables or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
        except OSError as error:
            raise PeerError(f"{python} cannot be run as a Python interpreter: {error.strerror}") from error

    def ask(self, command: str, *, limit: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Sends one request and waits for its reply.

        Raises PeerError when the process ends instead, or is ended because `limit` seconds are over.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        over = threading.Event()
        alarm = threading.Timer(limit or 0, lambda: (over.set(), self._process.kill()))
        if limit is not None:
            alarm.start()
        try:
            stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            stdin.flush()
            reply = stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            alarm.cancel()
        if reply:
            return json.loads(reply)
        status = self._process.wait()
        if over.is_set():
            raise PeerError(f"{self.module} was ended at {command!r} after its time limit of {limit:g} s")
        raise PeerError(f"{self.module} ended with status {status} at {command!r}: {self._last_words()}")

    def kill(self) -> None:
        """Ends the process whatever it does."""
        self._process.kill()
        self.__exit__()

    def _last_words(self) -> str:
        if self._said is None:
            return "its own message is above"
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()] or ["it said nothing"]
        return next((line for line in reversed(lines) if "rror" in line), lines[-1])

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate()  # closes its input, which ends it
        if self._said:
            self._said.close()


def peers_python() -> pathlib.Path:
    """The interpreter of the peers' environment. Raises PeerError when there is none."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        raise PeerError(f"the peers' environment {ENVIRONMENT.name} does not exist: make it with `make peers`")
    return python


def find_python() -> pathlib.Path:
    """A Python of PYTHON_VERSION that runs and can make an environment: on the PATH, or among pyenv's versions."""
    name = "python{}.{}".format(*PYTHON_VERSION)
    folders = [pathlib.Path(folder) for folder in os.get_exec_path()]
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    folders += sorted(pyenv.glob("versions/{}.{}.*/bin".format(*PYTHON_VERSION)), reverse=True)
    # pyenv's shims exist for versions that are not selected, and Debian ships Python without ensurepip: try them.
    check = f"import ensurepip, sys; sys.exit(sys.version_info[:2] != {PYTHON_VERSION})"
    for folder in folders:
        found = shutil.which(name, path=str(folder))
        if found and subprocess.run([found, "-c", check], capture_output=True).returncode == 0:
            return pathlib.Path(found)
    raise PeerError(f"no {name} with ensurepip runs here: install Python {name.removeprefix('python')} (pyenv will do)")


def make_environment() -> None:
    """Makes the peers' environment, or brings it up to `peers-requirements.txt`."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([find_python(), "-m", "venv", ENVIRONMENT], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True)


def flat_weights(*states: "nnx.State") -> dict[str, np.ndarray]:
    """Every array of a model under its path, such as "encoder.blocks.0.norm.scale"."""
    from flax import nnx

    return {
        ".".join(map(str, path)): np.asarray(variable[...])
        for state in states
        for path, variable in nnx.to_flat_state(state)
    }


if __name__ == "__main__":
    try:
        make_environment()
    except (PeerError, subprocess.CalledProcessError) as error:
        sys.exit(f"benchmarks.peers: {error}")
