"""JAX's own artefact: the one whose runtime is JAX."""

import pathlib

import jax
import numpy as np

from conformer.artefacts.geometry import MASKED, Geometry, zeros
from conformer.artefacts.runtime import Runtime
from conformer.config import FeatureConfig


class JaxExport(Runtime):
    """The artefact called from JAX."""

    def __init__(self, path: pathlib.Path, geometry: Geometry, features: FeatureConfig):
        super().__init__(path, geometry, features)
        self._call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
        self._reset()

    def _reset(self) -> None:
        self._state = [jax.numpy.asarray(array) for array in zeros(self.geometry.state_shapes).values()]

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        mask = np.where(valid, 0, MASKED).astype(np.float32)
        log_probs, *self._state = self._call(window, mask, *self._state)
        return np.asarray(log_probs)
