"""The position-wise feed-forward module; a block has two, each added at half weight (macaron)."""

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layers import LayerNorm, linear
from kernels.typing import Array, Float

ALIGNMENT = 32  # frames: 64 bytes of float16, the unit in which accelerators lay out the last axis


class FeedForward(nnx.Module):
    """y = swish(LayerNorm(x) W1 + b1) W2 + b2 (Gulati et al., 2020, section 2.3).

    With `ModelConfig.cache_bytes`, one slice of frames after the other, so that the hidden values, the largest tensor
    of a model, never leave a cache of that size. Each slice reads the weights again: worth it where they fit as well.
    """

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        self.hidden_dim, self.cache_bytes = config.feed_forward_dim, config.cache_bytes
        self.norm = LayerNorm(config.encoder_dim, config.kernels)
        self.expand = linear(config.encoder_dim, config.feed_forward_dim, compute=compute, rngs=rngs)
        self.contract = linear(config.feed_forward_dim, config.encoder_dim, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "batch frames channels"]) -> Float[Array, "batch frames channels"]:
        parts = [
            self.contract(jax.nn.swish(self.expand(self.norm(x[:, frames])))) for frames in self.slices(*x.shape[:2])
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def slices(self, batch_size: int, num_frames: int) -> list[slice]:
        """The slices of frames that are computed one after the other."""
        size = slice_size(batch_size, num_frames, self.hidden_dim, self.cache_bytes)
        return [slice(start, start + size) for start in range(0, num_frames, size)]


def slice_size(batch_size: int, num_frames: int, feed_forward_dim: int, cache_bytes: int) -> int:
    """Frames of each of `batch_size` rows whose hidden values fit: all, a multiple of ALIGNMENT, or fewer than that."""
    fitting = max(1, cache_bytes // (4 * batch_size * feed_forward_dim)) if cache_bytes else num_frames
    if fitting >= num_frames:
        return num_frames
    return max(fitting // ALIGNMENT * ALIGNMENT, min(fitting, ALIGNMENT))
