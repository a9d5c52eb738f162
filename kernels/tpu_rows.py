"""Rows of a matrix in the vector memory of a TPU: what the kernels of LayerNorm and of softmax on Mosaic TPU share."""

import dataclasses

from jax.experimental import pallas as pl

ROWS = 32  # a multiple of every format's tile: 8 rows of float32, 16 of bfloat16, 32 of float8
WIDEST = 2**14  # elements of a row


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Args:
    rows: rows of a block, a multiple of ROWS.
    """

    rows: int

    def fitted(self, count: int) -> int:
        """Rows of a block of a matrix that may have fewer."""
        return min(self.rows, pl.cdiv(count, ROWS) * ROWS)


def heuristic(width: int, block_bytes: int) -> Blocks:
    """Blocks for a width that was not measured: so many bytes in float32."""
    return Blocks(max(ROWS, block_bytes // (4 * width) // ROWS * ROWS))


def candidates(first: Blocks) -> list[Blocks]:
    """What tuning chooses among, around the heuristic's choice."""
    rows = {max(ROWS, int(first.rows * factor) // ROWS * ROWS) for factor in (0.25, 0.5, 1, 2)}
    return [Blocks(count) for count in sorted(rows)]
