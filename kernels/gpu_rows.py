"""Rows of a matrix in the registers of a GPU: what the kernels of LayerNorm and of softmax on Mosaic GPU share.

A warp holds whole rows, so that their sums need neither shared memory nor barriers: `lanes` threads share a row and
load `vector` neighbouring elements at a time, straight from global memory. A block of 4 warps holds `rows` rows at
once, which are the memory accesses in flight. The last block overlaps the one before where the rows do not divide, and
writes the same values.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.autotune import tuned
from kernels.implementation import Unsupported
from kernels.typing import Array

WARPS = 4


@dataclasses.dataclass(frozen=True)
class Threads:
    """How rows are spread over threads.

    Args:
        lanes: threads of a warp that share a row, a power of two up to 32.
        vector: neighbouring elements that a thread loads at once.
        rows: rows of a block, a multiple of `tile_rows`.
        programs: blocks of a pass that adds up over the rows, which they go through together.
    """

    lanes: int
    vector: int
    rows: int
    programs: int = 660

    @property
    def tile_rows(self) -> int:
        """Rows that 4 warps hold when each thread has a part of one."""
        return WARPS * 32 // self.lanes

    @property
    def layout(self) -> Any:
        """Of a block of rows: rows over warps, then over groups of lanes; columns over the lanes of a group."""
        width, vector = self.lanes * self.vector, (self.vector,)
        if self.lanes == 32:
            tiling, warps, lanes = plgpu.Tiling(((WARPS, width), vector)), (-3,), (-2,)
        else:
            tiling = plgpu.Tiling(((self.tile_rows, width), (32 // self.lanes, width), vector))
            warps, lanes = (-5,), (-3, -2)
        return plgpu.Layout.TILED(tiling, warp_dims=warps, lane_dims=lanes, vector_dim=-1)


class Rows(NamedTuple):
    """The rows of an operation.

    Args:
        operation: the name of its folder.
        columns: what the columns are called in the message of an error.
        per_lane: elements of a row that a thread may hold before it spills registers.
    """

    operation: str
    columns: str
    per_lane: int

    def threads(self, x: Array) -> Threads:
        """Of a matrix: as it was tuned, else as the heuristic says; a block is no larger than the matrix needs."""
        count, width = x.shape
        found = tuned(self.operation, "mosaic_gpu", Threads, width=width, format=x.dtype.name)
        found = found or self.heuristic(width, x.dtype)
        return dataclasses.replace(found, rows=min(found.rows, pl.cdiv(count, found.tile_rows) * found.tile_rows))

    def heuristic(self, width: int, format: Any) -> Threads:
        """For a width that was not measured: as many lanes a row as divide it, and loads of up to 16 bytes.

        Raises Unsupported for a width that cannot be spread over threads.
        """
        lanes = min(32, width & -width)
        if width % 16 or width // lanes > self.per_lane:
            raise Unsupported(
                f"{self.operation}: {width} {self.columns}: implementation='mosaic_gpu' takes multiples of 16 that "
                f"leave at most {self.per_lane} of them to each of {lanes} threads; use implementation='xla'"
            )
        vector = math.gcd(width // lanes, 16 // jnp.dtype(format).itemsize)
        return Threads(lanes, vector, rows=max(1, 32 // (width // lanes)) * WARPS * 32 // lanes)

    def candidates(self, width: int, format: Any) -> list[Threads]:
        """What tuning chooses among: the memory accesses in flight, and the programs of a pass that adds up."""
        first = self.heuristic(width, format)
        factors = [tiles for tiles in (1, 2, 4, 8) if tiles == 1 or tiles * width // first.lanes <= 64]
        forward = [dataclasses.replace(first, rows=first.tile_rows * tiles) for tiles in factors]
        return forward + [dataclasses.replace(first, programs=132 * factor) for factor in (2, 4, 8)]


def call(
    body: Callable[..., None],
    threads: Threads,
    tensors: Sequence[Array | None],
    others: Sequence[Array | None] = (),
    results: int = 1,
) -> list[Array]:
    """Runs `body(here, *references)` for every block of rows, `here` being its rows.

    Args:
        body: given references to the tensors, to the others and to the results, and None in the place of a None.
        tensors: (rows, columns) each, the first one not None.
        others: what every block reads as a whole.
        results: how many there are, each like the first tensor.
    """
    first, *rest = (at_least(x, threads.rows) for x in tensors)
    assert first is not None and tensors[0] is not None
    filled, count = len(first), len(tensors[0])

    def kernel(*references):
        start = jnp.minimum(lax.axis_index("block") * threads.rows, filled - threads.rows)
        body(pl.ds(start, threads.rows), *references)

    outputs = plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(first.shape, first.dtype)] * results,
        grid=(pl.cdiv(filled, threads.rows),),
        grid_names=("block",),
    )(first, *rest, *others)
    return [y[:count] for y in outputs]


def load(ref: Any, layout: Any) -> Array:
    """In float32."""
    return plgpu.load(ref, layout=layout, optimized=False).astype(jnp.float32)


def at_least[A: Array | None](x: A, rows: int) -> A:
    """A block needs so many rows; a matrix of fewer is filled up."""
    return x if x is None or x.shape[0] >= rows else jnp.pad(x, ((0, rows - x.shape[0]), (0, 0)))
