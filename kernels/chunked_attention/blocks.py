"""What the kernels are told about square blocks of queries and keys: which meet, and the bias between them."""

from typing import NamedTuple

import jax.numpy as jnp

from kernels.chunked_attention.reference import Positions, relative_shift, skew
from kernels.typing import Array, Float, Int

UNSEEN = jnp.iinfo(jnp.int32).max


class KeyBlocks(NamedTuple):
    """For each block of queries, blocks of keys by their numbers, all (batch, query_blocks).

    Args:
        first, last: [first, last) holds every block that any of the queries attends to.
        whole_first, whole_last: [whole_first, whole_last) are those of which every query sees every key. `whole_first`
            is UNSEEN where a query sees no key at all.
    """

    first: Int[Array, "batch query_blocks"]
    last: Int[Array, "batch query_blocks"]
    whole_first: Int[Array, "batch query_blocks"]
    whole_last: Int[Array, "batch query_blocks"]


def key_blocks(key_start: Int[Array, "batch queries"], key_end: Int[Array, "batch queries"], block: int) -> KeyBlocks:
    """Returns which blocks of keys each block of queries needs; `queries` is a multiple of `block`."""
    shape = (key_start.shape[0], -1, block)
    start, end = key_start.reshape(shape), key_end.reshape(shape)
    sees = start < end
    first = jnp.min(jnp.where(sees, start, UNSEEN), axis=-1) // block
    last = -(-jnp.max(jnp.where(sees, end, 0), axis=-1) // block)
    whole_first = jnp.where(jnp.all(sees, axis=-1), -(-jnp.max(start, axis=-1) // block), UNSEEN)
    whole_last = jnp.min(end, axis=-1) // block
    return KeyBlocks(*(x.astype(jnp.int32) for x in (jnp.where(last > 0, first, 0), last, whole_first, whole_last)))


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
    """What distances add to the scores of two blocks: a row, of which each diagonal of blocks reads a part.

    Query block a and key block b lie on diagonal a - b. On one diagonal the place of query i and key j of the two
    blocks is the same: row[slot * block + block - 1 - i + j], with the slot from `index`. Each head has a row of
    biases, or one for each query. Where all distances reach the outermost bias, parts are equal: the diagonals from
    `first` to `last` have slots, and the outer two stand for all that lie further out.

    Args:
        num_queries, num_keys: before padding; the queries are the last of the keys' positions.
        lowest, highest: no diagonal with larger distances alone has a slot.
        constant: there is one bias for all keys, which changes no weight: its gradient is zero.
    """

    def __init__(self, num_queries: int, num_keys: int, lowest: int, highest: int, block: int, constant: bool = False):
        self.num_keys, self.offset, self.block, self.constant = num_keys, num_keys - num_queries, block, constant
        self.first = max(-((self.offset + block - 1 - lowest) // block), 1 - -(-num_keys // block))
        self.last = min((highest + block - 1 - self.offset) // block, -(-num_queries // block) - 1)
        self.last = max(self.first, self.last)

    @property
    def slots(self) -> int:
        return self.last - self.first + 1

    def index(self, query_block, key_block) -> Array:
        """The slot of blocks by their numbers: integers or arrays of them."""
        return self.last - jnp.clip(query_block - key_block, self.first, self.last)

    def rows(self, positions: Positions) -> Float[Array, "..."]:
        """The rows, a block more of places than there are slots: (heads, places) in float32, or (batch, heads, queries,
        places) in the format of the queries, as what is added to their products in half precision elsewhere."""
        places = self.block * (self.slots + 1)
        distances = self.offset + self.block * (self.last + 1) - 1 - jnp.arange(places)
        rows = positions.at(distances, self.num_keys).rows()
        return rows.astype(jnp.float32 if positions.query is None else positions.query.dtype)

    def tiles(self, rows: Float[Array, "..."]) -> Float[Array, "..."]:
        """tiles[h, slot, i, j], or [b, h, query_block, slot, i, j]: what the class says, laid out."""
        if rows.ndim == 2:
            shifted = skew(rows, self.block)
        else:
            shifted = relative_shift(rows.reshape(*rows.shape[:2], -1, self.block, rows.shape[3]))
        tiles = shifted[..., :-1]
        return tiles.reshape(*tiles.shape[:-1], self.slots, self.block).swapaxes(-3, -2)
