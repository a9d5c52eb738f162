"""What the kernels are told about square blocks of queries and keys: which meet, and the bias between them."""

import jax.numpy as jnp

from kernels.chunked_attention.reference import bias_of, skew
from kernels.typing import Array, Float, Int


def key_blocks(
    key_start: Int[Array, "batch queries"], key_end: Int[Array, "batch queries"], block: int
) -> tuple[Int[Array, "batch query_blocks"], Int[Array, "batch query_blocks"]]:
    """The blocks of keys [first, last) that any query of a block attends to; `queries` is a multiple of `block`."""
    shape = (key_start.shape[0], -1, block)
    start, end = key_start.reshape(shape), key_end.reshape(shape)
    sees = start < end
    first = jnp.min(jnp.where(sees, start, jnp.iinfo(start.dtype).max), axis=-1) // block
    last = -(-jnp.max(jnp.where(sees, end, 0), axis=-1) // block)
    return jnp.where(last > 0, first, 0).astype(jnp.int32), last.astype(jnp.int32)


def query_blocks(
    first: Int[Array, "batch query_blocks"], last: Int[Array, "batch query_blocks"], num_key_blocks: int
) -> tuple[Int[Array, "batch key_blocks"], Int[Array, "batch key_blocks"]]:
    """The blocks of queries [first, last) between which all those lie that attend to a block of keys."""
    keys = jnp.arange(num_key_blocks)[:, None]
    meet = (first[:, None] <= keys) & (keys < last[:, None])  # (batch, key_blocks, query_blocks)
    queries = jnp.arange(first.shape[1])
    lowest = jnp.min(jnp.where(meet, queries, first.shape[1]), axis=-1)
    highest = jnp.max(jnp.where(meet, queries + 1, 0), axis=-1)
    return jnp.where(highest > 0, lowest, 0).astype(jnp.int32), highest.astype(jnp.int32)


class Diagonals:
    """The bias between blocks: a Toeplitz tile for each diagonal of blocks, a handful however long the sequence is.

    Query block a and key block b lie on diagonal d = a - b. Where all their distances reach the outermost bias, tiles
    are equal: only those from `first` to `last` are laid out, the outer two for all that lie further out.

    Args:
        num_queries, num_keys: before padding; the queries are the last of the keys' positions.
        largest: R, the largest distance with a bias of its own.
    """

    def __init__(self, num_queries: int, num_keys: int, largest: int, block: int):
        self.offset, self.block = num_keys - num_queries, block
        reach = largest + block - 1
        self.first = max((-reach - self.offset) // block, 1 - -(-num_keys // block))
        self.last = min(-(-(reach - self.offset) // block), -(-num_queries // block) - 1)
        self.last = max(self.first, self.last)

    def index(self, query_block, key_block) -> Array:
        """Which tile, of blocks by their numbers: integers or arrays of them."""
        return jnp.clip(query_block - key_block, self.first, self.last) - self.first

    def tiles(self, relative_bias: Float[Array, "heads distances"]) -> Float[Array, "heads diagonals block block"]:
        """tiles[h, t, i, j] = bias of query i of a block and key j of another on diagonal first + t, in float32."""
        corners = self.offset + self.block * jnp.arange(self.first, self.last + 1)
        distances = corners[:, None] + jnp.arange(self.block - 1, -self.block, -1)
        return skew(bias_of(relative_bias, distances).astype(jnp.float32), self.block)
