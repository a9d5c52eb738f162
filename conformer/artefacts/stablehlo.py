"""JAX's own artefact: the one whose runtime is JAX."""

import pathlib

import jax
import numpy as np

from conformer.artefacts.geometry import MASKED
from conformer.artefacts.runtime import Runtime


class JaxExport(Runtime):
    """The artefact called from JAX."""

    def _load(self, path: pathlib.Path) -> None:
        self._call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        mask = np.where(valid, 0, MASKED).astype(np.float32)
        log_probs, *parts = self._call(window, mask, *self._state.values())
        self._state = dict(zip(self._state, parts, strict=True))
        return np.asarray(log_probs)

    def _whole(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self._call(*inputs.values())[0])
