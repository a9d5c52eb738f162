"""The contestants of other runtimes: the steps that `benchmarks/exports.py` wrote."""

import numpy as np

from benchmarks.contestant import serve
from benchmarks.exports import artefact_path
from benchmarks.jax_peer import load_model
from benchmarks.record import versions
from conformer.artefacts.geometry import Geometry
from conformer.artefacts.loading import load_runtimes


class ExportStreamer:
    """One stream through an artefact, on one thread.

    Args:
        folder: what is measured (`benchmarks.streaming.save_inputs`), the artefacts with it.
        format, numerics: of the artefact (`conformer.export.formats`).
    """

    def __init__(self, folder: str, chunk_size: int, num_left_chunks: int, format: str, numerics: str):
        self.versions = versions("jax2onnx", "onnxruntime", "litert-converter", "ai-edge-litert")
        config, model = load_model(folder)
        path = artefact_path(folder, format, numerics)
        self.weight_bytes = path.stat().st_size
        geometry = Geometry.of(config, model, chunk_size, num_left_chunks)
        self._runtime = load_runtimes(format, path, geometry, config.features)[""]
        self._num_frames = np.array([chunk_size], np.int32)

    def reset(self) -> None:
        self._runtime.reset()

    def step(self, window: np.ndarray) -> np.ndarray:
        return self._runtime(window, self._num_frames)


if __name__ == "__main__":
    serve(ExportStreamer)
