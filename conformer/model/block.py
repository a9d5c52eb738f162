"""The Conformer block."""

from typing import NamedTuple

import jax
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.attention import Attention
from conformer.model.convolution import Convolution
from conformer.model.feed_forward import FeedForward
from conformer.model.layers import LayerNorm, dropout
from kernels.typing import Array, Bool, Float, Int, Key


class Past(NamedTuple):
    """What a block remembers of a stream."""

    attention: Float[Array, "batch key_value_heads past head_dim"]  # keys, then values, of the left context
    convolution: Float[Array, "batch taps channels"]  # newest inputs of the depthwise convolution


class Block(nnx.Module):
    """x += FF/2;  x += attention;  x += convolution;  x += FF/2;  LayerNorm (Gulati et al., 2020, eq. 1)."""

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.first_feed_forward = FeedForward(config, compute=compute, rngs=rngs)
        self.attention = Attention(config, compute=compute, rngs=rngs)
        self.convolution = Convolution(config, compute=compute, rngs=rngs)
        self.second_feed_forward = FeedForward(config, compute=compute, rngs=rngs)
        self.norm = LayerNorm(config.encoder_dim, config.kernels)

    def __call__(
        self,
        x: Float[Array, "batch frames channels"],
        key_start: Int[Array, "batch frames"],
        key_end: Int[Array, "batch frames"],
        inside: Bool[Array, "batch frames"],
        past: Past | None = None,
        chunks: tuple[int, int] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch frames channels"], Past]:
        """See `Attention` and `Convolution` for the arguments; returns what a stream remembers beside the output."""
        keys = [None] * 4 if dropout_key is None else list(jax.random.split(dropout_key, 4))
        past_attention, past_convolution = past if past is not None else (None, None)
        x = x + 0.5 * dropout(self.first_feed_forward(x), self.dropout, keys[0])
        attended, key_value = self.attention(x, key_start, key_end, past_attention, chunks)
        x = x + dropout(attended, self.dropout, keys[1])
        convolved, inputs = self.convolution(x, inside, past_convolution)
        x = x + dropout(convolved, self.dropout, keys[2])
        last = 0.5 * dropout(self.second_feed_forward(x), self.dropout, keys[3])
        return self.norm.of_sum(x, last), Past(key_value, inputs)
