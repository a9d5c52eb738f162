"""Multi-head self-attention with relative positions."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layouts.layout import Frames, Layout, Past, Seen
from conformer.model.linear import linear
from conformer.model.norm import LayerNorm
from conformer.model.positions import distance_sinusoids
from kernels.lut_softmax import softmax
from kernels.typing import Array


class Attention(nnx.Module):
    """y = concat_h(attention_h(LayerNorm(x))) W_o (Gulati et al., 2020, section 2.1), with one of POSITIONS.

    - "learned": a learned bias for each i - j. It costs one addition a score and is the same for every chunk, so that
      it can be laid out once for a fixed chunk and left context.
    - "relative" (Transformer-XL; Dai et al., 2019): (q_i + b) . W_p s(i - j) is added to q_i . k_j, with s the
      sinusoids of a distance. Their u is part of the bias of q, and b is v - u.
    - "absolute" (WeNet): the same with s(j), j counted from the start of the stream.
    """

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        dim = config.encoder_dim
        self.num_heads = config.num_heads
        self.compute = compute
        self.implementation = config.kernels or None
        self.positions = config.positions
        self.norm = LayerNorm(dim, config)
        self.query_key_value = linear(dim, 3 * dim, compute=compute, rngs=rngs)
        self.output = linear(dim, dim, compute=compute, rngs=rngs)
        self.softmax: Callable[..., Array] = softmax  # of scores and a mask; a numerics policy replaces it
        if self.positions == "learned":
            self.relative_bias = nnx.Param(jnp.zeros((config.num_heads, 2 * config.max_relative_distance + 1)))
        else:
            self.position = linear(dim, dim, compute=compute, rngs=rngs, use_bias=False)
            self.position_bias = nnx.Param(jnp.zeros((config.num_heads, dim // config.num_heads)))
            self.distances = nnx.data(None)  # W_p s of all distances, where they are laid out

    def __call__(
        self, x: Frames, seen: Seen, past: Past | None, layout: Layout, positions: Frames | None = None
    ) -> tuple[Frames, Any, Any]:
        """Attends to the keys of `past` followed by those of x, as far as they are `seen`.

        Args:
            positions: the sinusoids of all keys, where positions are absolute; of all distances, descending, where
                they are relative and neither laid out nor computed by the layout.

        Returns:
            the output, and the next `Past.key` and `Past.value`.
        """
        # Queries are scaled before their product with keys, which could overflow a narrow format.
        projected = layout.linear(self.query_key_value, layout.norm(self.norm, x), scale=(self.scale, 1.0, 1.0))
        out, key, value = layout.attend(self, projected, seen, past, positions)
        return layout.linear(self.output, out), key, value

    @property
    def scale(self) -> float:
        """The factor of the scores, 1 / sqrt(head_dim)."""
        return (self.query_key_value.kernel.shape[0] // self.num_heads) ** -0.5

    def distance_keys(self, num_queries: int, num_keys: int) -> Array:
        """W_p s of all distances, descending, (distances, heads, head_dim); the queries are the last of the keys."""
        if self.distances is not None:
            return self.distances[...]
        dim = self.query_key_value.kernel.shape[0]
        rows = self.position(jnp.asarray(distance_sinusoids(num_queries, num_keys, dim)))
        return rows.reshape(len(rows), self.num_heads, -1)

    def lay_out(self, layout: Layout, num_queries: int, num_keys: int) -> None:
        """Computes once what depends on the sizes of a stream's chunk and context alone."""
        if self.positions == "learned":
            laid_out = layout.position_bias(self.relative_bias[...], num_queries, num_keys)
            self.relative_bias = nnx.Param(laid_out)
        elif self.positions == "relative":
            self.distances = nnx.Param(self.distance_keys(num_queries, num_keys))
