"""The definition of chunked attention, in plain JAX: dense scores under a mask."""

from collections.abc import Callable

import jax.numpy as jnp

from kernels.typing import Array, Float, Int


def chunked_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads value_dim"],
    relative_bias: Float[Array, "heads distances"],
    key_start: Int[Array, "batch queries"],
    key_end: Int[Array, "batch queries"],
    softmax: Callable[[Array, Array], Array],
) -> Float[Array, "batch queries heads value_dim"]:
    """See `api.chunked_attention`."""
    bias = toeplitz(relative_bias, query.shape[1], key.shape[1])
    return biased_attention(query, key, value, bias, key_start, key_end, softmax)


def biased_attention(query, key, value, bias: Float[Array, "..."], key_start, key_end, softmax) -> Array:
    """The same with the bias of each query and key: it broadcasts against (batch, heads, queries, keys)."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    if num_queries == num_keys:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    else:  # a stream: with keys on the left XLA's product takes them as the cache holds them, heads first
        scores = jnp.einsum("bkhd,bqhd->bhkq", key, query, preferred_element_type=jnp.float32).swapaxes(2, 3)
    scores = scores + bias
    keys = jnp.arange(num_keys)
    mask = (key_start[..., None] <= keys) & (keys < key_end[..., None])
    weights = softmax(scores, mask[:, None])
    out = jnp.einsum("bhqk,bkhd->bhqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return out.swapaxes(1, 2).astype(query.dtype)


def toeplitz(
    relative_bias: Float[Array, "heads distances"], num_queries: int, num_keys: int
) -> Float[Array, "heads queries keys"]:
    """bias[h, i, j] = relative_bias[h, clip(distance) + R], distance = (position of query i) - j.

    The queries are the last of the keys.
    """
    # Of the last query, from the first key on, and beyond: row i of the skew starts num_queries - 1 - i further.
    distances = jnp.arange(num_keys - 1, -num_queries, -1)
    return skew(bias_of(relative_bias, distances), num_queries)


def bias_of(
    relative_bias: Float[Array, "heads distances"], distances: Int[Array, "*shape"]
) -> Float[Array, "heads *shape"]:
    """The bias of each distance; larger ones share the outermost."""
    largest = relative_bias.shape[1] // 2
    return jnp.take(relative_bias, jnp.clip(distances, -largest, largest) + largest, axis=1)


def skew(row: Float[Array, "*batch length"], num_rows: int) -> Float[Array, "*batch rows columns"]:
    """out[i, j] = row[num_rows - 1 - i + j], columns = length + 1 - num_rows.

    The row is repeated, one element longer than it is read, so that every read starts one element earlier: a skew by
    copying, with no gather and no scatter in its gradient.
    """
    *batch, length = row.shape
    padded = jnp.pad(row, [(0, 0)] * len(batch) + [(0, 1)])
    # Row i reads from offset num_rows - 1 - i: rotated so that row i of the skewed array starts there.
    padded = jnp.roll(padded, 1 - num_rows, axis=-1)
    repeated = jnp.tile(padded, (1,) * len(batch) + (num_rows,))[..., : num_rows * length]
    return repeated.reshape(*batch, num_rows, length)[..., : length + 1 - num_rows]
