"""Chunked attention in plain JAX with memory linear in the length: a band of blocks, or block after block.

`chunked_attention` has the rule by which one is taken, from measurements on a CPU (`benchmarks/long_audio.py`).
"""

import jax
import jax.numpy as jnp

from kernels.chunked_attention import reference
from kernels.typing import Array

BAND = 64  # about so many queries share a slice of the keys
LOOP = 256  # queries at a time where the keys are not limited
DENSE = 1024  # keys up to which all scores at once are small where they are not limited


def chunked_attention(query, key, value, positions, key_start, key_end, softmax, chunks=None) -> Array:
    """See `api.chunked_attention`.

    With static `chunks`, `banded` if it computes at most half of the scores: 4 times as fast as the reference for 256
    keys in chunks of 16 with 4 to their left, 50 times for 4096. Else `looped` for more than DENSE keys, for the sake
    of memory: an eighth for 4096 keys, and about as fast. Else the reference.
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    arguments = query, key, value, positions, key_start, key_end, softmax
    if chunks is not None and (num_keys - num_queries) % chunks[0] == 0:
        block, width = band(*chunks)
        if num_queries > block and 2 * width <= num_keys:
            return banded(*arguments, chunks)
    if num_keys > DENSE and num_queries > LOOP:
        return looped(*arguments)
    return reference.chunked_attention(*arguments)


def band(chunk_size: int, num_left_chunks: int) -> tuple[int, int]:
    """Queries of a block, whole chunks, and the keys that it is multiplied with, whole blocks."""
    block = chunk_size * max(1, BAND // chunk_size)
    return block, block * (1 + -(-chunk_size * num_left_chunks // block))


def banded(query, key, value, positions, key_start, key_end, softmax, chunks: tuple[int, int]) -> Array:
    """Every block of queries against its slice of the keys, all blocks at once; the slices overlap.

    The queries must begin with a chunk.
    """
    (batch, num_queries, heads, _), num_keys = query.shape, key.shape[1]
    block, width = band(*chunks)
    blocks, before = -(-num_queries // block), width - block

    def blocked(x):
        return _pad(x, 0, blocks * block - num_queries).reshape(batch, blocks, block, *x.shape[2:])

    # Slice i begins `before` keys ahead of the first query of block i.
    first = num_keys - num_queries - before
    key, value = (
        _slices(_pad(x[:, max(first, 0) :], max(-first, 0), blocks * block), blocks, block, width) for x in (key, value)
    )
    start, end = (blocked(x)[:, :, None, :, None] for x in (key_start, key_end))
    keys = first + block * jnp.arange(blocks)[:, None, None, None] + jnp.arange(width)
    mask = (start <= keys) & (keys < end)
    distances = jnp.arange(width - 1, -block, -1)  # of the last query, and beyond
    if positions.query is not None:
        positions = positions._replace(query=blocked(positions.query))
    scores = jnp.einsum("bnqhd,bnkhd->bnhqk", blocked(query), key, preferred_element_type=jnp.float32)
    scores = scores + positions.at(distances, num_keys).scores(block)
    weights = softmax(scores, mask).astype(value.dtype)
    out = jnp.einsum("bnhqk,bnkhd->bnqhd", weights, value, preferred_element_type=jnp.float32)
    return out.reshape(batch, blocks * block, heads, -1)[:, :num_queries].astype(query.dtype)


def looped(query, key, value, positions, key_start, key_end, softmax) -> Array:
    """One block of queries after the other, against all keys; the backward pass makes their scores again."""
    (batch, num_queries, heads, _), num_keys = query.shape, key.shape[1]
    blocks = -(-num_queries // LOOP)
    padding = blocks * LOOP - num_queries
    query, position_query, start, end = (
        None if x is None else _pad(x, 0, padding).reshape(batch, blocks, LOOP, *x.shape[2:]).swapaxes(0, 1)
        for x in (query, positions.query, key_start, key_end)
    )
    # Distances of the last padded query from the first key on; a block reads those from its own last query on.
    distances = jnp.arange(num_keys - 1 + padding, -num_queries, -1)
    positions, keys = positions.at(distances, num_keys), jnp.arange(num_keys)

    @jax.checkpoint
    def attend(operands):
        index, query, position_query, start, end = operands
        own = positions.part((blocks - 1 - index) * LOOP, LOOP + num_keys - 1)._replace(query=position_query)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) + own.scores(LOOP)
        mask = (start[:, None, :, None] <= keys) & (keys < end[:, None, :, None])
        weights = softmax(scores, mask).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value, preferred_element_type=jnp.float32).astype(query.dtype)

    out = jax.lax.map(attend, (jnp.arange(blocks), query, position_query, start, end))
    return out.swapaxes(0, 1).reshape(batch, blocks * LOOP, heads, -1)[:, :num_queries]


def _slices(x: Array, blocks: int, block: int, width: int) -> Array:
    """(batch, blocks, width, ...): slices of the second axis that begin every `block` elements."""
    parts = x[:, : (blocks - 1) * block + width].reshape(x.shape[0], -1, block, *x.shape[2:])
    return jnp.concatenate([parts[:, i : i + blocks] for i in range(width // block)], axis=2)


def _pad(x: Array, before: int, after: int) -> Array:
    """Zeros along the second axis."""
    return jnp.pad(x, [(before, after) if i == 1 else (0, 0) for i in range(x.ndim)])
