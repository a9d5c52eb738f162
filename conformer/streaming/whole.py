"""The stepper in JAX of a model that takes whole recordings: each window is a recording."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from conformer.model import ConformerCTC
from conformer.streaming.stepper import Framing
from kernels.typing import Array, Bool, Float, Int


class WholeEngine:
    """A model as a `Stepper` without a state. A recording is recognised when it has ended.

    Args:
        framing: says how long a recording may be (`Framing.of_whole`); shorter ones take as much time.
        context: chunk size and left chunks of attention (`Config.whole_context`).
    """

    batch_size = 1
    state_bytes = 0

    def __init__(self, model: ConformerCTC, framing: Framing, context: tuple[int, int] = (0, -1)):
        self.framing = framing
        graphdef, weights = nnx.split(model)
        self._weights = jax.device_put(weights, jax.devices()[0])

        def run(weights: Any, features: Float[Array, "1 time mel"], lengths: Int[Array, " 1"]) -> Array:
            model = nnx.merge(graphdef, weights)
            return model.log_softmax(model(features, lengths, chunk_size=context[0], num_left_chunks=context[1])[0])

        self._run = jax.jit(run)

    def __call__(
        self,
        windows: Float[np.ndarray, "1 window mel"],
        num_frames: Int[np.ndarray, " 1"],
        fresh: Bool[np.ndarray, " 1"] | None = None,
    ) -> Float[np.ndarray, "1 frames vocab"]:
        """See `Stepper`."""
        lead, end = self.framing.lengths.lead, self.framing.end(windows[0], int(num_frames[0]))
        return np.asarray(self._run(self._weights, windows[:, lead:], np.array([end - lead], np.int32)))

    def reset(self) -> None:
        """See `Stepper`."""

    def warm_up(self) -> None:
        """Compiles the model."""
        shape = (1, self.framing.window, self.framing.features.num_mel_bins)
        self(np.zeros(shape, np.float32), np.ones(1, np.int32))
