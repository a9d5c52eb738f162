"""Multi-head self-attention with relative positions."""

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
        self.norm = LayerNorm(config.encoder_dim)
        self.query_key_value = linear(config.encoder_dim, 3 * config.encoder_dim, compute=compute, rngs=rngs)
        self.output = linear(config.encoder_dim, config.encoder_dim, compute=compute, rngs=rngs)
        self.softmax = softmax
        self.relative_bias = nnx.Param(jnp.zeros((config.num_heads, 2 * config.max_relative_distance + 1)))

    def __call__(
        self,
        x: Float[Array, "batch frames channels"],
        key_start: Int[Array, "batch frames"],
        key_end: Int[Array, "batch frames"],
        past: Float[Array, "batch past key_value"] | None = None,
    ) -> tuple[Float[Array, "batch frames channels"], Float[Array, "batch keys key_value"]]:
        """Attends to keys [key_start, key_end) of `past` followed by x.

        Args:
            past: keys and values of earlier frames, side by side (key_value = 2 * channels); None = none.

        Returns:
            the output, and the keys and values of past and x together, from which a stream keeps the newest.
        """
        batch, frames, channels = x.shape
        query, key_value = jnp.split(self.query_key_value(self.norm(x)), [channels], axis=-1)
        if past is not None:
            key_value = jnp.concatenate([past, key_value], axis=1)
        key, value = jnp.split(key_value, 2, axis=-1)
        # Scaled before the product, which could overflow a narrow format.
        query = query * (channels // self.num_heads) ** -0.5
        query, key, value = (
            a.reshape(batch, -1, self.num_heads, channels // self.num_heads) for a in (query, key, value)
        )
        out = chunked_attention(query, key, value, self.relative_bias[...], key_start, key_end, softmax=self.softmax)
        return self.output(out.reshape(batch, frames, channels)), key_value
