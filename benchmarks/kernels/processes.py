"""One contestant at a time, in a process of its own that has a time limit: what fails ends nothing else."""

import hashlib
import importlib.util
import os
import pathlib
import shutil
import sys
from typing import Any

from benchmarks.peers import Peer, PeerError, peers_python
from conformer import record
from kernels.device import current_device

SECONDS = 100.0  # of one measurement: JAX or PyTorch starts and compiles
WORKER, TORCH_WORKER = "benchmarks.kernels.worker", "benchmarks.torch_peer.kernels"


class Processes:
    """The process of one contestant, which makes way for that of the next, and is replaced where it failed."""

    def __init__(self, limit: float = SECONDS):
        self._limit = limit
        self._name, self._peer = "", None

    def ask(self, name: str, command: str, *, module: str = WORKER, **request: Any) -> dict[str, Any]:
        """The reply of the process of that name, or {"skipped": why there is none}."""
        try:
            if self._peer is None or self._name != name:
                self.close()
                self._name, self._peer = name, Peer(module, python=_python(module), quiet=True)
            reply = self._peer.ask(command, limit=self._limit, **request)
        except PeerError as error:
            reply = {"skipped": str(error)[:300], "broken": True}
        if reply.pop("broken", False):  # an error of CUDA stays with its process
            self.close()
        return reply

    def close(self) -> None:
        if self._peer is not None:
            self._peer.kill()
        self._peer = None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def share_device() -> None:
    """For this process and those it starts, before JAX starts: memory as it is needed, and ptxas on the PATH."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if (cuda := cuda_folder()) and shutil.which("ptxas") is None:
        os.environ["PATH"] = os.pathsep.join([f"{cuda}/bin", os.environ.get("PATH", "")])


def fingerprint() -> dict[str, Any]:
    """What times depend on: rows of another one are not taken over."""
    root = pathlib.Path(__file__).parents[2]
    source = hashlib.sha256()
    for file in sorted(root.glob("kernels/**/*.py")):
        source.update(file.read_bytes())
    return {
        "accelerator": current_device().kind,
        "versions": record.versions("jax", "jaxlib"),
        "kernels": source.hexdigest()[:12],
    }


def cuda_folder() -> str | None:
    """The folder with bin/ptxas: of the wheel nvidia-cuda-nvcc, of CUDA_HOME, on the PATH, or where CUDA is usual."""
    specification = importlib.util.find_spec("nvidia")
    wheels = specification.submodule_search_locations or [] if specification else []
    found = [path for folder in wheels for path in pathlib.Path(folder).glob("*/bin/ptxas")]
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    found += [pathlib.Path(folder, "bin", "ptxas") for folder in folders if folder]
    found += [pathlib.Path(path) for path in [shutil.which("ptxas")] if path]
    return next((str(path.parents[1]) for path in found if path.is_file()), None)


def _python(module: str) -> str | os.PathLike:
    return sys.executable if module != TORCH_WORKER or importlib.util.find_spec("torch") else peers_python()
