"""Vectors laid over a block of rows, in the one way that both Mosaic compilers take."""

from jax import lax

from kernels.typing import Array, Bool, Num


def across(row: Num[Array, " rows"], block: Num[Array, "rows columns"]) -> Num[Array, "rows columns"]:
    """One value a row, for each of its columns."""
    return lax.broadcast_in_dim(row, block.shape, (0,))


def along(
    column: Num[Array, " columns"] | Bool[Array, " columns"], rows: int
) -> Num[Array, "rows columns"] | Bool[Array, "rows columns"]:
    """One value a column, for each row."""
    return lax.broadcast_in_dim(column, (rows, *column.shape), (1,))
