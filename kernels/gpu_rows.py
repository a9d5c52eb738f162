"""Rows of a matrix in the registers of a GPU: what the kernels of LayerNorm and of softmax on Mosaic GPU share.

A warp holds whole rows, so that their sums need neither shared memory nor barriers: `lanes` threads share a row and
load `vector` neighbouring elements at a time, straight from global memory. A block of 4 warps holds `rows` rows at
once, which are the memory accesses in flight. The last block overlaps the one before where the rows do not divide, and
writes the same values.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.implementation import Unsupported
from kernels.typing import Array

WARPS = 4


@dataclasses.dataclass(frozen=True)
class Blocks:
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

    def fitted(self, count: int) -> "Blocks":
        """For a matrix of so few rows that it does not fill a block."""
        return dataclasses.replace(self, rows=min(self.rows, pl.cdiv(count, self.tile_rows) * self.tile_rows))


def heuristic(operation: str, columns: str, width: int, format: Any, per_lane: int) -> Blocks:
    """Blocks for a width that was not measured: as many lanes a row as divide it, and loads of up to 16 bytes.

    Args:
        columns: what the columns are called in the message of an error.
        per_lane: elements of a row that a thread may hold before it spills registers.
    """
    lanes = min(32, width & -width)
    if width % 16 or width // lanes > per_lane:
        raise Unsupported(
            f"{operation}: {width} {columns}: implementation='mosaic_gpu' takes multiples of 16 that leave at most "
            f"{per_lane} of them to each of {lanes} threads; use implementation='xla'"
        )
    vector = math.gcd(width // lanes, 16 // jnp.dtype(format).itemsize)
    return Blocks(lanes, vector, rows=max(1, 32 // (width // lanes)) * WARPS * 32 // lanes)


def candidates(first: Blocks, width: int) -> list[Blocks]:
    """What tuning chooses among: the memory accesses in flight, and the programs of a pass that adds up."""
    factors = [tiles for tiles in (1, 2, 4, 8) if tiles == 1 or tiles * width // first.lanes <= 64]
    forward = [dataclasses.replace(first, rows=first.tile_rows * tiles) for tiles in factors]
    return forward + [dataclasses.replace(first, programs=132 * factor) for factor in (2, 4, 8)]


def load(ref: Any, layout: Any) -> Array:
    """In float32."""
    return plgpu.load(ref, layout=layout, optimized=False).astype(jnp.float32)


def here(blocks: Blocks, count: int) -> Any:
    """The rows of this program among `count`."""
    return pl.ds(jnp.minimum(lax.axis_index("block") * blocks.rows, count - blocks.rows), blocks.rows)


def at_least[A: Array | None](x: A, rows: int) -> A:
    """A block needs so many rows; a matrix of fewer is filled up."""
    return x if x is None or x.shape[0] >= rows else jnp.pad(x, ((0, rows - x.shape[0]), (0, 0)))
