"""Multi-head self-attention with relative positions."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layouts.layout import Frames, Layout, Past, Seen
from conformer.model.linear import linear
from conformer.model.norm import LayerNorm
from kernels.lut_softmax import softmax
from kernels.typing import Array


class Attention(nnx.Module):
    """y = concat_h(attention_h(LayerNorm(x))) W_o (Gulati et al., 2020, section 2.1), a learned bias for each i - j.

    The bias replaces Transformer-XL's content-dependent term: it costs one addition a score and is the same for every
    chunk, so that it can be laid out once for a fixed chunk and left context.
    """

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.compute = compute
        self.implementation = config.kernels or None
        self.norm = LayerNorm(config.encoder_dim, config.kernels)
        self.query_key_value = linear(config.encoder_dim, 3 * config.encoder_dim, compute=compute, rngs=rngs)
        self.output = linear(config.encoder_dim, config.encoder_dim, compute=compute, rngs=rngs)
        self.softmax: Callable[..., Array] = softmax  # of scores and a mask; a numerics policy replaces it
        self.relative_bias = nnx.Param(jnp.zeros((config.num_heads, 2 * config.max_relative_distance + 1)))

    def __call__(self, x: Frames, seen: Seen, past: Past | None, layout: Layout) -> tuple[Frames, Any, Any]:
        """Attends to the keys of `past` followed by those of x, as far as they are `seen`.

        Returns:
            the output, and the next `Past.key` and `Past.value`.
        """
        # Queries are scaled before their product with keys, which could overflow a narrow format.
        scale = (self.query_key_value.kernel.shape[0] // self.num_heads) ** -0.5
        projected = layout.linear(self.query_key_value, layout.norm(self.norm, x), scale=(scale, 1.0, 1.0))
        out, key, value = layout.attend(self, projected, seen, past)
        return layout.linear(self.output, out), key, value
