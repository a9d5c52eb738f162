"""Rows of a matrix in the vector memory of a TPU: what the kernels of LayerNorm and of softmax on Mosaic TPU share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.autotune import tuned
from kernels.guard import shaped
from kernels.implementation import Unsupported
from kernels.typing import Array

ROWS = 32  # a multiple of every format's tile: 8 rows of float32, 16 of bfloat16, 32 of float8
LANES = 128  # columns of a register
WIDEST = 2**14  # elements of a row


@dataclasses.dataclass(frozen=True)
class Height:
    """Args:
    rows: rows of a block, a multiple of ROWS.
    """

    rows: int


class Rows(NamedTuple):
    """The rows of an operation.

    Args:
        operation: the name of its folder.
        columns: what the columns are called in the message of an error.
        block_bytes: of a block in float32; several are in flight, and vector memory holds 16 MiB or more.
    """

    operation: str
    columns: str
    block_bytes: int

    def check(self, **tensors: Array | None) -> None:
        """Raises Unsupported for rows that are too wide, and for float16."""
        for name, x in tensors.items():
            if x is not None and x.dtype == jnp.float16:
                raise Unsupported(
                    f"{self.operation}: the format of {name} is float16, which TPUs cannot load: cast it to bfloat16 "
                    "or float32, or use implementation='xla'"
                )
            if x is not None and x.shape[-1] > WIDEST:
                raise Unsupported(
                    f"{self.operation}: {x.shape[-1]} {self.columns}: a block of vector memory holds rows of {WIDEST}: "
                    "use implementation='xla'"
                )

    def block(self, x: Array) -> int:
        """Rows of a block of a matrix: as tuned, else as the heuristic says; no more than the matrix needs."""
        count, width = x.shape
        found = tuned(self.operation, "mosaic_tpu", Height, width=width, format=x.dtype.name)
        return min((found or self.heuristic(width)).rows, pl.cdiv(count, ROWS) * ROWS)

    def heuristic(self, width: int) -> Height:
        """For a width that was not measured."""
        return Height(max(ROWS, self.block_bytes // (4 * width) // ROWS * ROWS))

    def candidates(self, width: int, format: Any) -> list[Height]:
        """What tuning chooses among, around the heuristic's choice."""
        first = self.heuristic(width).rows
        return [Height(rows) for rows in sorted({max(ROWS, first * n // 4 // ROWS * ROWS) for n in (1, 2, 4, 8)})]


def call(
    body: Callable[..., None],
    block: int,
    tensors: Sequence[Array | None],
    others: Sequence[Array | None] = (),
    results: int = 1,
    *,
    sums: int = 0,
    whole_lanes: bool = False,
) -> Sequence[Array]:
    """Runs `body(*references)` for every block of rows. `jax.vmap` calls in turn, for sums belong to one call.

    Args:
        body: given references to the tensors, to the others, to the results and to the sums, and None in the place of
            a None. The last block reads past the end.
        tensors: (rows, columns) each, the first one not None.
        others: (1, columns) each, which every block reads as a whole.
        results: how many there are, each like the first tensor.
        sums: how many more there are, (1, columns) in float32, that the blocks add up, one after the other.
        whole_lanes: blocks are as wide as whole registers, and so read past the last column.
    """
    first = tensors[0]
    assert first is not None
    count, width = first.shape

    def columns(x: Array | jax.ShapeDtypeStruct) -> int:
        return pl.cdiv(x.shape[1], LANES) * LANES if whole_lanes else x.shape[1]

    def cut(x: Array | None) -> pl.BlockSpec | None:
        return None if x is None else pl.BlockSpec((block, columns(x)), lambda index: (index, 0))

    def whole(x: Array | jax.ShapeDtypeStruct | None) -> pl.BlockSpec | None:
        return None if x is None else pl.BlockSpec((1, columns(x)), lambda index: (0, 0))

    total = shaped((1, width), jnp.float32, first)
    kernel = pl.pallas_call(
        body,
        out_shape=[shaped(first.shape, first.dtype, first)] * results + [total] * sums,
        grid=(pl.cdiv(count, block),),
        in_specs=[cut(x) for x in tensors] + [whole(x) for x in others],
        out_specs=[cut(first)] * results + [whole(total)] * sums,
        compiler_params=pltpu.CompilerParams(dimension_semantics=(pltpu.ARBITRARY if sums else pltpu.PARALLEL,)),
    )
    return jax.custom_batching.sequential_vmap(lambda *arrays: kernel(*arrays))(*tensors, *others)
