"""The Conformer block."""

import jax
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.attention import Attention
from conformer.model.convolution import Convolution
from conformer.model.feed_forward import FeedForward
from conformer.model.layouts.layout import Frames, Inside, Layout, Past, Seen
from conformer.model.linear import dropout
from conformer.model.norm import LayerNorm
from kernels.typing import Array, Key


class Block(nnx.Module):
    """x += FF/2;  x += attention;  x += convolution;  x += FF/2;  LayerNorm (Gulati et al., 2020, eq. 1)."""

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.first_feed_forward = FeedForward(config, compute=compute, rngs=rngs)
        self.attention = Attention(config, compute=compute, rngs=rngs)
        self.convolution = Convolution(config, compute=compute, rngs=rngs)
        self.second_feed_forward = FeedForward(config, compute=compute, rngs=rngs)
        self.norm = LayerNorm(config.encoder_dim, config)

    def __call__(
        self,
        x: Frames,
        seen: Seen,
        inside: Inside,
        past: Past | None,
        layout: Layout,
        dropout_key: Key[Array, ""] | None = None,
        positions: Frames | None = None,
    ) -> tuple[Frames, Past]:
        """See `Attention` and `Convolution` for the arguments; returns what a stream remembers beside the output.

        A key for dropout means that the model is being trained.
        """
        keys = iter([] if dropout_key is None else jax.random.split(dropout_key, 4))

        def drop(y: Frames) -> Frames:
            return y if dropout_key is None else dropout(y, self.dropout, next(keys))

        with layout.scope("feed-forward", x):
            x = layout.add(x, drop(self.first_feed_forward(x, layout)))
        with layout.scope("attention", x):
            y, key, value = self.attention(x, seen, past, layout, positions)
            x = layout.add(x, drop(y))
        with layout.scope("convolution", x):
            past_inputs = None if past is None else past.inputs
            y, inputs = self.convolution(x, inside, past_inputs, layout, training=dropout_key is not None)
            x = layout.add(x, drop(y))
        with layout.scope("feed-forward", x):
            y = drop(self.second_feed_forward(x, layout))
        with layout.scope("norm"):
            return layout.norm_of_sum(self.norm, x, y), Past(key, value, inputs)
