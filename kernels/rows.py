"""Rows of a matrix as a kernel sees them, whatever the device: sums over a row, vectors laid over rows, masks that rows
share.

The rows of a back end (`gpu_rows.Rows`, `tpu_rows.Rows`) run the same body over all blocks of rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from kernels.typing import Array, Bool, Float, Int, Num


@dataclasses.dataclass(frozen=True)
class Span:
    """The columns of a block of rows, and the blocks that hold the rest of the same rows.

    Args:
        width: columns of a row.
        inside: which columns of the block belong to the row; None for all. The others are zero.
        combined: joins what the blocks of a row found, by an operation of two.
    """

    width: int
    inside: Bool[Array, "rows columns"] | None = None
    combined: Callable[[Array, Callable[[Array, Array], Array]], Array] = lambda found, operation: found

    def total(self, x: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
        """The sum of each row."""
        return self.combined(jnp.sum(x, axis=1), jnp.add)

    def largest(self, x: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
        """The largest element of each row."""
        return self.combined(jnp.max(x, axis=1), jnp.maximum)

    def mean(self, x: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
        """The mean of each row."""
        return self.total(x) / self.width

    def own(self, x: Num[Array, "rows columns"], other: float = 0) -> Num[Array, "rows columns"]:
        """x, and `other` in columns that do not belong to the row."""
        return x if self.inside is None else jnp.where(self.inside, x, other)


class Mask(NamedTuple):
    """Which keys are seen. Row r of the scores has row r // (heads rows) rows + r % rows of the mask.

    Args:
        seen: (mask rows, keys).
        heads: how often each group of `rows` rows of the mask is used.
    """

    seen: Bool[Array, "masks keys"]
    heads: int
    rows: int

    def row(self, row: Array) -> Array:
        """The row of the mask for a row of the scores."""
        return lax.div(row, jnp.int32(self.heads * self.rows)) * self.rows + lax.rem(row, jnp.int32(self.rows))

    def whole(self, count: int) -> Bool[Array, "rows keys"]:
        """The mask with one row for each of `count` rows of scores."""
        seen = self.seen.reshape(-1, 1, self.rows, self.seen.shape[1])
        return jnp.broadcast_to(seen, (len(seen), self.heads, *seen.shape[2:])).reshape(count, -1)


def across(row: Num[Array, " rows"], block: Num[Array, "rows columns"]) -> Num[Array, "rows columns"]:
    """Lays one value a row over the columns of a block. Both Mosaic compilers take this form."""
    return lax.broadcast_in_dim(row, block.shape, (0,))


def one_hot(
    entries: Float[Array, "rows entries"], places: Int[Array, "rows entries"]
) -> Callable[[Any, Int[Array, " rows"]], Float[Array, " rows"]]:
    """A look-up for one index a row: compares it with the places of all entries, the same in each row."""
    return lambda _, index: jnp.sum(jnp.where(places == across(index, entries), entries, 0.0), axis=1)
