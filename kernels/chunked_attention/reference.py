"""The definition of chunked attention, in plain JAX: dense scores under a mask."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.typing import Array, Float, Int


class Positions(NamedTuple):
    """What the distance d = i - j of query i and key j adds to their score:  b[d] + p_i . r[d].

    Args:
        bias: b; None is zero where p and r are given.
        query, key: p and r; None where nothing depends on the content of queries.
    """

    bias: Float[Array, "heads distances"] | None
    query: Float[Array, "*batch queries heads position_dim"] | None = None
    key: Float[Array, "positions heads position_dim"] | None = None

    def at(self, distances: Int[Array, " distances"], num_keys: int) -> "Positions":
        """Returns b and r of these distances, in their order, of those that `api.chunked_attention` takes."""
        bias, key = self.bias, self.key
        if key is not None:
            key = jnp.take(key, num_keys - 1 - distances, axis=0, mode="clip")
        return self._replace(bias=None if bias is None else bias_of(bias, distances), key=key)

    def part(self, first: Int[Array, ""], size: int) -> "Positions":
        """Returns b and r of a part of their distances."""
        bias, key = (
            None if x is None else jax.lax.dynamic_slice_in_dim(x, first, size, axis)
            for x, axis in ((self.bias, 1), (self.key, 0))
        )
        return self._replace(bias=bias, key=key)

    def rows(self) -> Any:
        """Returns what is added at each distance: (heads, distances), or (*batch, heads, queries, distances)."""
        if self.query is None:
            return self.bias
        content = jnp.einsum("...qhd,lhd->...hql", self.query, self.key, preferred_element_type=jnp.float32)
        return content if self.bias is None else content + self.bias[:, None]

    def scores(self, num_queries: int) -> Float[Array, "..."]:
        """Returns what is added to each score, (..., heads, queries, keys), where distances descend by one.

        The first distance is that of the last query and the first key.
        """
        rows = self.rows()
        return skew(rows, num_queries) if self.query is None else relative_shift(rows)


def chunked_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads value_dim"],
    positions: Positions,
    key_start: Int[Array, "batch queries"],
    key_end: Int[Array, "batch queries"],
    softmax: Callable[[Array, Array], Array],
) -> Float[Array, "batch queries heads value_dim"]:
    """See `api.chunked_attention`."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    if num_queries == num_keys:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    else:  # a stream: with keys on the left XLA's product takes them as the cache holds them, heads first
        scores = jnp.einsum("bkhd,bqhd->bhkq", key, query, preferred_element_type=jnp.float32).swapaxes(2, 3)
    scores = scores + position_scores(positions, num_queries, num_keys)
    keys = jnp.arange(num_keys)
    mask = (key_start[..., None] <= keys) & (keys < key_end[..., None])
    weights = softmax(scores, mask[:, None])
    out = jnp.einsum("bhqk,bkhd->bhqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return out.swapaxes(1, 2).astype(query.dtype)


def position_scores(positions: Positions, num_queries: int, num_keys: int) -> Float[Array, "..."]:
    """Returns what positions add to each score, (heads, queries, keys) or (*batch, heads, queries, keys)."""
    # Of the last query, from the first key on, and beyond: row i starts num_queries - 1 - i further.
    return positions.at(jnp.arange(num_keys - 1, -num_queries, -1), num_keys).scores(num_queries)


def toeplitz(
    relative_bias: Float[Array, "heads distances"], num_queries: int, num_keys: int
) -> Float[Array, "heads queries keys"]:
    """bias[h, i, j] = relative_bias[h, clip(distance) + R], distance = (position of query i) - j.

    The queries are the last of the keys.
    """
    return position_scores(Positions(relative_bias), num_queries, num_keys)


def bias_of(
    relative_bias: Float[Array, "heads distances"], distances: Int[Array, "*shape"]
) -> Float[Array, "heads *shape"]:
    """The bias of each distance; larger ones share the outermost."""
    largest = relative_bias.shape[1] // 2
    return jnp.take(relative_bias, jnp.clip(distances, -largest, largest) + largest, axis=1)


def skew(row: Float[Array, "*batch length"], num_rows: int) -> Float[Array, "*batch rows columns"]:
    """out[i, j] = row[num_rows - 1 - i + j], columns = length + 1 - num_rows."""
    return relative_shift(jnp.broadcast_to(row[..., None, :], (*row.shape[:-1], num_rows, row.shape[-1])))


def relative_shift(rows: Float[Array, "*batch rows length"]) -> Float[Array, "*batch rows columns"]:
    """out[i, j] = rows[i, num_rows - 1 - i + j], columns = length + 1 - num_rows.

    The rows lie one behind the other, so that one read a place shorter a row starts a place earlier in each: slices and
    reshapes alone, with no gather and no scatter in the gradient (Dai et al., 2019, appendix B).
    """
    *batch, num_rows, length = rows.shape
    if num_rows == 1:
        return rows
    flat = rows.reshape(*batch, num_rows * length)[..., num_rows - 1 :][..., : num_rows * (length - 1)]
    return flat.reshape(*batch, num_rows, length - 1)[..., : length + 1 - num_rows]
