"""Multi-head self-attention with relative positions."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layers import LayerNorm, linear
from kernels.chunked_attention import chunked_attention
from kernels.lut_softmax import softmax
from kernels.typing import Array, Float, Int


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

    def __call__(
        self,
        x: Float[Array, "batch frames channels"],
        key_start: Int[Array, "batch frames"],
        key_end: Int[Array, "batch frames"],
        past: Float[Array, "batch key_value_heads past head_dim"] | None = None,
        chunks: tuple[int, int] | None = None,
    ) -> tuple[Float[Array, "batch frames channels"], Float[Array, "batch key_value_heads keys head_dim"]]:
        """Attends to keys [key_start, key_end) of `past` followed by x.

        Args:
            past: keys of earlier frames, head by head, then values (key_value_heads = 2 * heads); None = none.
            chunks: (chunk_size, num_left_chunks) of the ranges, where they are known before tracing.

        Returns:
            the output, and the keys and values of past and x together, from which a stream keeps the newest.
        """
        batch, frames, channels = x.shape
        heads = self.query_key_value(self.norm(x)).reshape(batch, frames, 3 * self.num_heads, -1)
        query, key_value = jnp.split(heads, [self.num_heads], axis=2)
        # Heads first, as the products of attention want them: a stream moves each frame once, not at every step.
        key_value = key_value.swapaxes(1, 2)
        if past is not None:
            key_value = jnp.concatenate([past, key_value], axis=2)
        key, value = jnp.split(key_value.swapaxes(1, 2), 2, axis=2)
        # Scaled before the product, which could overflow a narrow format.
        query, key, value = (x.astype(self.compute) for x in (query * query.shape[-1] ** -0.5, key, value))
        arrays = query, key, value, self.relative_bias[...], key_start, key_end
        out = chunked_attention(*arrays, softmax=self.softmax, chunks=chunks, implementation=self.implementation)
        return self.output(out.reshape(batch, frames, channels)), key_value
