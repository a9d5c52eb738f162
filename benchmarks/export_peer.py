"""The contestants of other runtimes: the steps that `benchmarks/exports.py` wrote."""

import pathlib

import numpy as np

from benchmarks.contestant import serve
from benchmarks.exports import artefact_path
from conformer.config import Config
from conformer.export.pipeline import load_runtimes
from conformer.export.step import Geometry
from conformer.record import versions


class ExportStreamer:
    """One stream through an artefact, on one thread.

    Args:
        folder: what is measured (`benchmarks.streaming.save_inputs`), the artefacts with it.
        format, numerics: of the artefact (`conformer.export.formats`).
    """

    def __init__(self, folder: str, chunk_size: int, num_left_chunks: int, format: str, numerics: str):
        self.versions = versions("jax2onnx", "onnxruntime", "litert-converter", "ai-edge-litert")
        config = Config.from_json(pathlib.Path(folder, "config.json"))
        path = artefact_path(folder, format, numerics)
        self.weight_bytes = path.stat().st_size
        self._runtime = load_runtimes(format, path, Geometry.of(config, chunk_size, num_left_chunks))[""]
        self._num_frames = np.array([chunk_size], np.int32)

    def reset(self) -> None:
        self._runtime.reset()

    def step(self, window: np.ndarray) -> np.ndarray:
        return self._runtime(window, self._num_frames)


if __name__ == "__main__":
    serve(ExportStreamer)
