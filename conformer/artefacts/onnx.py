"""ONNX Runtime, with the interface of WeNet's CTC models.

Inputs and outputs are bound by position, in the order of INPUTS and OUTPUTS; the client keeps the state, the offset and
the mask (csrc/online-wenet-ctc-model.cc of sherpa-onnx). The step does not need `required_cache_size`, but the client
sends it. It needs `offset`, the number of frames of the stream before the chunk, only where positions are absolute.
The mask says which frames of the left context and of the chunk are valid. Those of the look-ahead are where features
come; behind the end of an utterance stand zeros.
"""

import pathlib
from typing import Any

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]

from conformer.artefacts.geometry import Geometry, zeros
from conformer.artefacts.runtime import Runtime

INPUTS = ("x", "offset", "required_cache_size", "attn_cache", "conv_cache", "attn_mask")
OUTPUTS = ("log_probs", "next_attn_cache", "next_conv_cache")


class OnnxRuntime(Runtime):
    """ONNX Runtime on one thread."""

    def _load(self, path: pathlib.Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The fallback would print on standard output what is wrong with a file, and try the same again.
        settings = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}
        self._session = onnxruntime.InferenceSession(str(path), options, **settings)

    def _initial_state(self) -> dict[str, np.ndarray]:
        return {} if self.geometry.whole else zeros(cache_shapes(self.geometry))

    def inputs(self, window: np.ndarray, valid: np.ndarray) -> dict[str, Any]:
        """Returns the inputs of a step by name: a window, a mask of the valid keys, and the state as it is."""
        offset = np.array([self._frames_seen])
        mask = valid[None, None, : mask_shape(self.geometry)[-1]]
        values = (window[None], offset, np.zeros(1, np.int64), *self._state.values(), mask)
        return dict(zip(INPUTS, values, strict=True))

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        log_probs, *caches = self._session.run(None, self.inputs(window, valid))
        self._state = dict(zip(self._state, caches, strict=True))
        return np.asarray(log_probs)[0]

    def _whole(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self._session.run(None, inputs)[0])


def mask_shape(geometry: Geometry) -> tuple[int, ...]:
    """Returns the shape of the mask: a key of the left context and of the chunk each."""
    return 1, 1, geometry.left + geometry.chunk_size


def cache_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the state: one array each for attention (keys beside values) and convolution."""
    g = geometry
    return {
        "attn_cache": (g.num_layers, g.num_heads, g.left, 2 * g.head_dim),
        "conv_cache": (g.num_layers, 1, g.encoder_dim, g.kernel_size - 1),
    }
