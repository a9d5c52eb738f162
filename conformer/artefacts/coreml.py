"""Core ML, where there is no macOS: the saved package in NumPy (`mil_interpreter`)."""

import pathlib

import numpy as np

from conformer.artefacts.geometry import MASKED, Geometry
from conformer.artefacts.mil_interpreter import MilInterpreter, load_package
from conformer.artefacts.runtime import Runtime


class CoreMl(Runtime):
    """The saved package, interpreted operation by operation in NumPy, every result rounded to its type."""

    emulated = True

    def _load(self, path: pathlib.Path) -> None:
        self._program = MilInterpreter(load_package(path))

    @property
    def layouts(self) -> dict[str, int]:
        return self._program.layouts()

    def _initial_state(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(shape, np.float16) for name, shape in state_shapes(self.geometry).items()}

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        mask = np.where(valid, 0, MASKED)
        values = {"window": window.T, "mask": mask, "offset": np.array(self._frames_seen)}
        inputs = {name: values[name].astype(np.float32).reshape(s) for name, s in input_shapes(self.geometry).items()}
        results = self._program(inputs, self._state)
        return results["log_probs"][0, :, 0].T


def input_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the float32 inputs beside the states.

    These are the features, the mask that is added to the scores of each key, and, where positions are absolute, the
    number of frames of the stream before the chunk.
    """
    g = geometry
    offset = {"offset": (1, 1, 1, 1)} if g.positions == "absolute" else {}
    return {"window": (1, 1, g.num_mel_bins, g.window), "mask": (1, g.num_keys, 1, 1)} | offset


def state_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the states: one array each for keys, values and convolution inputs, of all blocks."""
    g = geometry
    return {
        "key": (g.num_layers, g.left, 1, g.encoder_dim),
        "value": (g.num_layers, g.encoder_dim, 1, g.left),
        "inputs": (g.num_layers, g.encoder_dim, 1, g.kernel_size - 1),
    }
