"""The definition of chunked attention, in plain JAX: dense scores under a mask."""

from collections.abc import Callable

import jax.numpy as jnp

from kernels.typing import Array, Float, Int


def chunked_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    relative_bias: Float[Array, "heads distances"],
    key_start: Int[Array, "batch queries"],
    key_end: Int[Array, "batch queries"],
    softmax: Callable[[Array, Array], Array],
) -> Float[Array, "batch queries heads head_dim"]:
    """See `api.chunked_attention`."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    if num_queries == num_keys:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    else:  # a stream: with keys on the left XLA's product takes them as the cache holds them, heads first
        scores = jnp.einsum("bkhd,bqhd->bhkq", key, query, preferred_element_type=jnp.float32).swapaxes(2, 3)
    scores = scores + toeplitz(relative_bias, num_queries, num_keys)
    keys = jnp.arange(num_keys)
    mask = (key_start[..., None] <= keys) & (keys < key_end[..., None])
    weights = softmax(scores, mask[:, None])
    out = jnp.einsum("bhqk,bkhd->bhqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return out.swapaxes(1, 2)


def toeplitz(
    relative_bias: Float[Array, "heads distances"], num_queries: int, num_keys: int
) -> Float[Array, "heads queries keys"]:
    """bias[h, i, j] = relative_bias[h, clip(distance) + R], distance = (position of query i) - j.

    The queries are the last of the keys. One row of all the distances is repeated, one element longer than it is read,
    so that every read starts one element earlier: a skew by copying, with no gather and no scatter in its gradient.
    """
    heads, distances = relative_bias.shape
    largest = distances // 2
    length = num_queries + num_keys - 1
    distance = jnp.arange(
        num_keys - 1, num_keys - 1 - length, -1
    )  # of the last query, from the first key on, and beyond
    row = jnp.take(relative_bias, jnp.clip(distance, -largest, largest) + largest, axis=1)
    # Query i reads from offset (num_queries - 1 - i): rotate so that row i of the skewed array starts there.
    row = jnp.roll(jnp.pad(row, ((0, 0), (0, 1))), -(num_queries - 1), axis=1)
    skewed = jnp.tile(row, (1, num_queries))[:, : num_queries * length].reshape(heads, num_queries, length)
    return skewed[:, :, :num_keys]
