"""JAX's own artefact (`jax.export`, StableHLO): the reference that the others are compared with.

It loads in the version of JAX that wrote it and newer ones, without this project's code; for devices, the others are.
"""

import pathlib

import jax
import numpy as np

from conformer.export.formats import Interface, Task
from conformer.export.runtime import Runtime
from conformer.export.state import MASKED, describe, flat_step, specifications
from conformer.export.step import Geometry


def export(task: Task) -> Interface:
    """Writes the step, ending in log-probabilities."""
    run = jax.jit(flat_step(task.model, task.geometry, jax.nn.log_softmax))
    exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(*specifications(task.geometry))
    task.path.write_bytes(exported.serialize())
    return describe(task.geometry, "log_probs")


class JaxExport(Runtime):
    """The artefact called from JAX."""

    def __init__(self, path: pathlib.Path, geometry: Geometry):
        super().__init__(path, geometry)
        self._call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
        self._reset()

    def _reset(self) -> None:
        self._state = [jax.numpy.asarray(array) for array in jax.tree.leaves(self.geometry.initial_state())]

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        mask = np.where(valid, 0, MASKED).astype(np.float32)
        log_probs, *self._state = self._call(window, mask, *self._state)
        return np.asarray(log_probs)
