"""Normalisation on NVIDIA GPUs (Mosaic GPU), for widths that are multiples of 16.

A warp holds whole rows in registers, so that their sums need neither shared memory nor barriers: `lanes` threads share
a row and load `vector` neighbouring elements at a time, and a block of 4 warps holds `rows` rows at once, the memory
accesses in flight. The last block overlaps the one before where the rows do not divide: it writes the same values.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.autotune import tuned
from kernels.implementation import Unsupported
from kernels.layer_norm import block, fused
from kernels.layer_norm.form import Form, stored
from kernels.typing import Array, Float

WARPS = 4
PER_LANE = 32  # elements of a row that a thread may hold: with twice as many the backward pass spills registers


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How rows are spread over threads.

    Args:
        lanes: threads of a warp that share a row, a power of two up to 32.
        vector: neighbouring elements that a thread loads at once.
        rows: rows of a block in the forward pass, a multiple of `tile_rows`.
        programs: blocks of the backward pass, which go through the rows together and add up dscale and dbias.
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
        """Of a block of rows: rows over warps, then over groups of lanes; channels over the lanes of a group."""
        width, vector = self.lanes * self.vector, (self.vector,)
        if self.lanes == 32:
            tiling, warps, lanes = plgpu.Tiling(((WARPS, width), vector)), (-3,), (-2,)
        else:
            together = 32 // self.lanes
            tiling = plgpu.Tiling(((self.tile_rows, width), (together, width), vector))
            warps, lanes = (-5,), (-3, -2)
        return plgpu.Layout.TILED(tiling, warp_dims=warps, lane_dims=lanes, vector_dim=-1)


def normalise(
    x: Float[Array, "*batch channels"],
    residual: Float[Array, "*batch channels"] | None,
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"] | None,
    form: Form,
) -> tuple[Float[Array, "*batch channels"], Float[Array, "*batch channels"] | None]:
    """See `reference.normalise`. Raises Unsupported for widths that rows cannot be spread over threads with."""
    heuristic(x.shape[-1], x.dtype)
    return fused.normalise(_KERNELS, x, residual, scale, bias, form)


def heuristic(width: int, format: jnp.dtype) -> Blocks:
    """Blocks for a width that was not measured: as many lanes a row as divide it, and loads of up to 16 bytes."""
    lanes = min(32, width & -width)
    if width % 16 or width // lanes > PER_LANE:
        raise Unsupported(
            f"layer_norm: x has {width} channels: implementation='mosaic_gpu' takes multiples of 16 whose odd part "
            f"leaves at most {PER_LANE} of them to a thread; use implementation='xla'"
        )
    vector = math.gcd(width // lanes, 16 // jnp.dtype(format).itemsize)
    tiles = PER_LANE // (width // lanes)
    return Blocks(lanes, vector, rows=tiles * WARPS * 32 // lanes)


def candidates(width: int, format: jnp.dtype) -> list[Blocks]:
    """What tuning chooses among."""
    first = heuristic(width, format)
    rows = [first.tile_rows * tiles for tiles in (1, 2, 4, 8) if tiles * width // first.lanes <= 2 * PER_LANE]
    forward = [dataclasses.replace(first, rows=count) for count in rows]
    return forward + [dataclasses.replace(first, programs=132 * factor) for factor in (2, 4, 8)]


def _blocks(x: Array) -> Blocks:
    width, format = x.shape[1], x.dtype
    return tuned("layer_norm", "mosaic_gpu", Blocks, width=width, format=format.name) or heuristic(width, format)


def _load(ref, layout) -> Array:
    return plgpu.load(ref, layout=layout, optimized=False).astype(jnp.float32)  # straight from global memory


def _forward(x: Array, residual: Array | None, scale: Array, bias: Array | None, form: Form):
    blocks, (count, width) = _blocks(x), x.shape
    rows = min(blocks.rows, -(-count // blocks.tile_rows) * blocks.tile_rows)
    x, residual = (None if a is None else _at_least(a, rows) for a in (x, residual))
    padded, added, shifted = x.shape[0], residual is not None, bias is not None

    def body(*refs):
        present = (True, added, True, shifted, True, added)
        x_ref, residual_ref, scale_ref, bias_ref, y_ref, total_ref = _named(refs, present)
        start = jnp.minimum(lax.axis_index("block") * rows, padded - rows)
        here = pl.ds(start, rows)
        x = _load(x_ref.at[here], blocks.layout)
        if added:
            total = stored(x + _load(residual_ref.at[here], blocks.layout), total_ref.dtype)
            total_ref.at[here][...] = total
            x = total.astype(jnp.float32)
        x_hat, _ = block.normalised(x, form)
        y = x_hat * block.along(_load(scale_ref, blocks.layout.reduce(0)), rows)
        if shifted:
            y = y + block.along(_load(bias_ref, blocks.layout.reduce(0)), rows)
        y_ref.at[here][...] = stored(y, y_ref.dtype)

    like_x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    results = plgpu.kernel(
        body,
        out_type=(like_x, like_x) if added else (like_x,),
        grid=(pl.cdiv(padded, rows),),
        grid_names=("block",),
    )(*(a for a in (x, residual, scale, bias) if a is not None))
    return results[0][:count], results[1][:count] if added else None


def _backward(total: Array, scale: Array, cotangent: Array, passed: Array | None, form: Form):
    blocks, (count, width) = _blocks(total), total.shape
    # Sums across warps are made for vectors of at most 16 bytes of float32.
    blocks = dataclasses.replace(blocks, vector=min(blocks.vector, 4))
    rows = blocks.tile_rows
    total, cotangent, passed = (None if a is None else _at_least(a, rows) for a in (total, cotangent, passed))
    padded = total.shape[0]
    tiles = pl.cdiv(padded, rows)
    programs, handed = min(blocks.programs, tiles), passed is not None

    def body(*refs):
        total_ref, scale_ref, cotangent_ref, passed_ref, dx_ref, dscale_ref, dbias_ref = _named(
            refs, (True, True, True, handed, True, True, True)
        )
        program = lax.axis_index("block")
        scales = block.along(_load(scale_ref, blocks.layout.reduce(0)), rows)

        def step(index, sums):
            first = (program + index * programs) * rows
            start = jnp.minimum(first, padded - rows)
            here = pl.ds(start, rows)
            cotangent = _load(cotangent_ref.at[here], blocks.layout)
            dx, dscale = block.gradient(_load(total_ref.at[here], blocks.layout), scales, cotangent, form)
            if handed:
                dx = dx + _load(passed_ref.at[here], blocks.layout)
            dx_ref.at[here][...] = stored(dx, dx_ref.dtype)
            # Rows that the block before has too count once.
            row = start + plgpu.broadcasted_iota(jnp.int32, (rows, width), 0, layout=blocks.layout)
            new = row >= first
            return tuple(old + jnp.where(new, a, 0.0) for old, a in zip(sums, (dscale, cotangent), strict=True))

        zeros = plgpu.layout_cast(jnp.zeros((rows, width), jnp.float32), blocks.layout)
        steps = (tiles - program + programs - 1) // programs
        dscale, dbias = lax.fori_loop(0, steps, step, (zeros, zeros))
        dscale_ref.at[program][...] = jnp.sum(dscale, axis=0)
        dbias_ref.at[program][...] = jnp.sum(dbias, axis=0)

    partial = jax.ShapeDtypeStruct((programs, width), jnp.float32)
    dx, dscale, dbias = plgpu.kernel(
        body,
        out_type=(jax.ShapeDtypeStruct(total.shape, total.dtype), partial, partial),
        grid=(programs,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(reduction_scratch_bytes=WARPS * width * 4),
    )(*(a for a in (total, scale, cotangent, passed) if a is not None))
    return dx[:count], jnp.sum(dscale, axis=0), jnp.sum(dbias, axis=0)


def _named(refs, present) -> list:
    """The references under their places, None where there is no array."""
    remaining = iter(refs)
    return [next(remaining) if there else None for there in present]


def _at_least(x: Array, rows: int) -> Array:
    """A block needs so many rows; a tensor of fewer is filled up."""
    return x if x.shape[0] >= rows else jnp.pad(x, ((0, rows - x.shape[0]), (0, 0)))


_KERNELS = fused.Kernels(_forward, _backward)
