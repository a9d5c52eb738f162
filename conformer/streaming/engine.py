"""The stepper in JAX: the encoder's step for a fixed number of streams, compiled once."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.config import Config
from conformer.model import Cache, ConformerCTC
from conformer.model.subsampling import lengths_of
from conformer.streaming.stepper import Framing
from kernels.typing import Array, Bool, Float, Int


class Engine:
    """A model as a `Stepper`. Warns where it was not trained for the chunk size.

    Args:
        chunk_size: encoder frames that are recognised at a time.
        num_left_chunks: chunks that are seen before them.
        look_ahead: encoder frames that are seen after them.
        batch_size: streams that are stepped at once.
    """

    def __init__(
        self,
        config: Config,
        model: ConformerCTC,
        *,
        chunk_size: int = 16,
        num_left_chunks: int = 4,
        look_ahead: int = 0,
        batch_size: int = 1,
    ):
        if (reason := config.not_streaming) is not None:
            raise ValueError(reason)
        if look_ahead < 0:
            raise ValueError(f"look_ahead={look_ahead}: it is a number of encoder frames, at least 0")
        if reason := config.untrained_chunk(chunk_size, look_ahead):
            warnings.warn(reason, stacklevel=2)
        self.framing = Framing(config.features, lengths_of(config.model), chunk_size, look_ahead)
        self.batch_size = batch_size
        cache = jax.eval_shape(lambda: model.encoder.initial_cache(batch_size, chunk_size, num_left_chunks))
        self._initial = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), cache)  # nothing to compile
        self.reset()
        size = self.framing.window_frames
        model = model.encoder.layout.lay_out(model, size, chunk_size * num_left_chunks + size)
        graphdef, weights = nnx.split(model)
        self._weights = jax.device_put(weights, jax.devices()[0])

        def step(
            weights: Any,
            cache: Cache,
            windows: Float[Array, "batch window mel"],
            num_frames: Int[Array, " batch"],
            fresh: Bool[Array, " batch"],
        ) -> tuple[Float[Array, "batch frames vocab"], Cache]:
            model = nnx.merge(graphdef, weights)
            cache = _choose(fresh, jax.tree.map(jnp.zeros_like, cache), cache) if batch_size > 1 else cache
            x, new_cache = model.encoder.step(cache, model.standardise(windows), num_frames, look_ahead)
            # A slot with no frames this time keeps its state.
            new_cache = _choose(num_frames > 0, new_cache, cache) if batch_size > 1 else new_cache
            return model.log_softmax(model.head(x)), new_cache

        # The old state is not donated: XLA would copy it first, since most of the new one is a part of it, shifted.
        self._step = jax.jit(step)

    def __call__(
        self,
        windows: Float[np.ndarray, "batch window mel"],
        num_frames: Int[np.ndarray, " batch"],
        fresh: Bool[np.ndarray, " batch"] | None = None,
    ) -> Float[np.ndarray, "batch frames vocab"]:
        """See `Stepper`."""
        if fresh is None:
            fresh = np.zeros(self.batch_size, bool)
        if self.batch_size == 1 and fresh[0]:
            self.reset()
        log_probs, self._cache = self._step(self._weights, self._cache, windows, num_frames, fresh)
        return np.asarray(log_probs)

    def reset(self) -> None:
        """See `Stepper`."""
        # Committed to a device, as what a step returns: JAX compiles anew for what is not.
        self._cache = jax.device_put(jax.tree.map(np.copy, self._initial), jax.devices()[0])

    def warm_up(self) -> None:
        """Compiles the step."""
        shape = (self.batch_size, self.framing.window, self.framing.features.num_mel_bins)
        self(np.zeros(shape, np.float32), np.zeros(self.batch_size, np.int32))
        self.reset()

    @property
    def state_bytes(self) -> int:
        """See `Stepper`."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._initial)) // self.batch_size


def _choose(rows: Bool[Array, " batch"], chosen: Cache, other: Cache) -> Cache:
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b), chosen, other)
