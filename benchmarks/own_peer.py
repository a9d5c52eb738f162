"""This project's contestants: an `Engine` with one slot under a numerics policy, and exported artefacts."""

import pathlib

import jax
import numpy as np
from flax import nnx

from benchmarks.chunk import random_model
from benchmarks.contestant import Unavailable, serve
from conformer import runtime
from conformer.artefacts.card import artefact_name
from conformer.artefacts.formats import FORMATS, ExportError
from conformer.artefacts.geometry import Geometry
from conformer.artefacts.loading import load_runtimes
from conformer.config import Config
from conformer.export.formats import backend
from conformer.numerics import apply_policy
from conformer.record import versions
from conformer.streaming.engine import Engine


def artefact_path(folder: str | pathlib.Path, format: str, numerics: str) -> pathlib.Path:
    """Returns the path of an artefact."""
    return pathlib.Path(folder, artefact_name(format, numerics) + FORMATS[format].suffix)


class OwnStreamer:
    """One stream through the engine that recognisers use, or through an artefact, on one thread.

    Args:
        folder: what is measured (`benchmarks.streaming.save_inputs`), artefacts with it.
        format: of the artefact (`conformer.export.formats`); None = the engine.
        numerics: the policy that is applied, or that of the artefact.
    """

    def __init__(self, folder: str, chunk_size: int, num_left_chunks: int, numerics: str, format: str | None):
        config = Config.from_json(pathlib.Path(folder, "config.json"))
        if format is None:
            runtime.set_up()
            self.versions = versions("jax", "jaxlib", "flax", "numpy")
            model = apply_policy(random_model(config), numerics)
            self.weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
            self._engine = Engine(config, model, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
            self._engine.warm_up()
        else:
            try:
                backend(format)
            except ExportError as error:
                raise Unavailable(str(error)) from None
            self.versions = versions("jax2onnx", "onnxruntime", "litert-converter", "ai-edge-litert")
            path = artefact_path(folder, format, numerics)
            self.weight_bytes = path.stat().st_size
            geometry = Geometry.of(config, random_model(config), chunk_size, num_left_chunks)
            self._engine = load_runtimes(format, path, geometry, config.features)[""]
        self._num_frames = np.array([chunk_size], np.int32)

    def reset(self) -> None:
        self._engine.reset()

    def step(self, window: np.ndarray) -> np.ndarray:
        return self._engine(window, self._num_frames)


if __name__ == "__main__":
    serve(OwnStreamer)
