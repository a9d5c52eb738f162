"""Chunk masks as start and end rows: the keys of query i are key_start[i] <= j < key_end[i]."""

import jax.numpy as jnp

from kernels.typing import Array, Int


def chunk_rows(
    num_frames: int,
    lengths: Int[Array, " batch"],
    chunk_size: int | Int[Array, ""] | Int[Array, "batch 1"],
    num_left_chunks: int | Int[Array, ""] | Int[Array, "batch 1"],
) -> tuple[Int[Array, "batch frames"], Int[Array, "batch frames"]]:
    """The keys that each frame of an utterance attends to.

    Frame i of chunk c = i // chunk_size sees chunks c - num_left_chunks ... c, and nothing past its utterance's end.
    Both limits may be traced values, so that one compiled function serves every chunk size, and may differ from
    utterance to utterance.

    Args:
        num_frames: padded frames T.
        lengths: valid frames of each utterance; more than T are T.
        chunk_size: frames in a chunk; 0 = the whole utterance.
        num_left_chunks: chunks of left context; negative = all.

    Returns:
        key_start and key_end, both (batch, T); frames past the end see no key.
    """
    frames, lengths = jnp.arange(num_frames), jnp.minimum(lengths, num_frames)
    size = jnp.where(jnp.asarray(chunk_size) == 0, num_frames, chunk_size)
    chunk = frames // size
    start = jnp.where(jnp.asarray(num_left_chunks) < 0, 0, jnp.maximum(chunk - num_left_chunks, 0) * size)
    end = jnp.minimum((chunk + 1) * size, lengths[:, None])
    inside = frames < lengths[:, None]
    return jnp.where(inside, start, 0), jnp.where(inside, end, 0)


def seen_keys(
    key_start: Int[Array, "batch queries"], key_end: Int[Array, "batch queries"]
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """The first key that any query sees, and the one past the last; (0, 0) where none sees any."""
    sees = key_start < key_end
    highest = jnp.max(jnp.where(sees, key_end, 0), axis=1)
    return jnp.min(jnp.where(sees, key_start, highest[:, None]), axis=1), highest
