"""The twin's contestant of `bench.py streaming`, eager or compiled, on one thread. Runs in the peers' environment."""

# pyright: reportMissingImports=false

import json
import os
import pathlib
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import torch
import torch._inductor.config

from benchmarks.contestant import Unavailable, serve
from benchmarks.torch_peer.conformer import ConformerCTC, load_weights
from conformer.record import versions

COMPILE_LIMIT = 120  # seconds


class TorchStreamer:
    """One stream through the twin.

    Args:
        folder: what is measured (`benchmarks.streaming.save_inputs`).
        compiled: use torch.compile; the process ends when that takes longer than COMPILE_LIMIT.
    """

    def __init__(self, folder: str, chunk_size: int, num_left_chunks: int, compiled: bool):
        torch.set_num_threads(1)
        self.versions = versions("torch", "numpy")
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        model = ConformerCTC(SimpleNamespace(**config["model"]), config["features"]["num_mel_bins"]).eval()
        with np.load(pathlib.Path(folder, "weights.npz")) as arrays:
            load_weights(model, dict(arrays))
        self.weight_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
        self._initial = model.encoder.initial_cache(1, chunk_size, num_left_chunks)
        self._step = model.step
        self.reset()
        if compiled:
            self._compile(np.load(pathlib.Path(folder, "windows.npy"))[0])

    def reset(self) -> None:
        self._cache = self._initial

    def step(self, window: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            log_probs, self._cache = self._step(self._cache, torch.from_numpy(window))
        return log_probs.numpy()

    def _compile(self, window: np.ndarray) -> None:
        if not (shutil.which("g++") or shutil.which("clang++")):
            raise Unavailable("torch.compile needs a C++ compiler: install g++")
        torch._inductor.config.freezing = True  # weights as constants, laid out for the products: the faster form
        torch._inductor.config.compile_threads = 1  # a pool of processes would outlive the alarm
        self._step = torch.compile(self._step, dynamic=False, fullgraph=True)
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(COMPILE_LIMIT)
        self.step(window)
        signal.alarm(0)


def _give_up(*_) -> None:
    # The compiler cannot be interrupted cleanly: answer, and end with it.
    print(json.dumps({"skipped": f"torch.compile did not finish within {COMPILE_LIMIT} s"}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    serve(TorchStreamer)
