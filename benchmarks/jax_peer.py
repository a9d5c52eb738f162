"""This project's contestant: an `Engine` with one slot, under one of the numerics policies."""

import pathlib

import jax
import numpy as np
from flax import nnx

from benchmarks.contestant import serve
from conformer import runtime
from conformer.config import Config
from conformer.model import ConformerCTC
from conformer.numerics import apply_policy
from conformer.record import versions
from conformer.streaming.engine import Engine


class JaxStreamer:
    """One stream through the engine that recognisers use.

    Args:
        folder: what is measured (`benchmarks.streaming.save_inputs`).
        numerics: the policy that is applied.
    """

    def __init__(self, folder: str, chunk_size: int, num_left_chunks: int, numerics: str):
        runtime.set_up()
        self.versions = versions("jax", "jaxlib", "flax", "numpy")
        config, model = load_model(folder)
        model = apply_policy(model, numerics)
        self.weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
        self._engine = Engine(config, model, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
        self._num_frames = np.array([chunk_size], np.int32)
        self._engine.warm_up()

    def reset(self) -> None:
        self._engine.reset()

    def step(self, window: np.ndarray) -> np.ndarray:
        return self._engine(window, self._num_frames)


def load_model(folder: str) -> tuple[Config, ConformerCTC]:
    """The configuration and the model of a folder (see `JaxStreamer`)."""
    config = Config.from_json(pathlib.Path(folder, "config.json"))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0))))
    with np.load(pathlib.Path(folder, "weights.npz")) as arrays:
        flat = [
            (path, variable.replace(arrays[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)
        ]
    return config, nnx.merge(graphdef, jax.device_put(nnx.from_flat_state(flat)))


if __name__ == "__main__":
    serve(JaxStreamer)
