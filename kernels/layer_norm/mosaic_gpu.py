"""Normalisation on NVIDIA GPUs (Mosaic GPU): rows in registers (`kernels.gpu_rows`)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import gpu_rows
from kernels.autotune import tuned
from kernels.gpu_rows import Blocks, at_least, load
from kernels.layer_norm import block, fused
from kernels.layer_norm.form import Form, stored
from kernels.typing import Array, Float

PER_LANE = 32  # with twice as many elements of a row a thread the backward pass spills registers


def normalise(
    x: Float[Array, "*batch channels"],
    residual: Float[Array, "*batch channels"] | None,
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"] | None,
    form: Form,
) -> tuple[Float[Array, "*batch channels"], Float[Array, "*batch channels"] | None]:
    """See `reference.normalise`. Raises Unsupported for widths that cannot be spread over threads."""
    heuristic(x.shape[-1], x.dtype)
    return fused.normalise(_KERNELS, x, residual, scale, bias, form)


def heuristic(width: int, format: Any) -> Blocks:
    """Blocks for a width that was not measured."""
    return gpu_rows.heuristic("layer_norm", "channels of x", width, format, PER_LANE)


def _blocks(x: Array) -> Blocks:
    count, width = x.shape
    found = tuned("layer_norm", "mosaic_gpu", Blocks, width=width, format=x.dtype.name)
    return (found or heuristic(width, x.dtype)).fitted(count)


def _forward(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, form: Form
) -> tuple[Array, Array | None]:
    blocks, count = _blocks(x), x.shape[0]
    added, shifted, layout = residual is not None, bias is not None, blocks.layout
    x, residual = at_least(x, blocks.rows), at_least(residual, blocks.rows)

    def body(*refs):
        present = (True, added, True, shifted, True, added)
        x_ref, residual_ref, scale_ref, bias_ref, y_ref, total_ref = _named(refs, present)
        here = gpu_rows.here(blocks, x_ref.shape[0])
        x = load(x_ref.at[here], layout)
        if added:
            total = stored(x + load(residual_ref.at[here], layout), total_ref.dtype)
            total_ref.at[here][...] = total
            x = total.astype(jnp.float32)
        x_hat, _ = block.normalised(x, form)
        y = x_hat * block.along(load(scale_ref, layout.reduce(0)), blocks.rows)
        if shifted:
            y = y + block.along(load(bias_ref, layout.reduce(0)), blocks.rows)
        y_ref.at[here][...] = stored(y, y_ref.dtype)

    like_x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    results = plgpu.kernel(
        body,
        out_type=(like_x, like_x) if added else (like_x,),
        grid=(pl.cdiv(x.shape[0], blocks.rows),),
        grid_names=("block",),
    )(*(a for a in (x, residual, scale, bias) if a is not None))
    return results[0][:count], results[1][:count] if added else None


def _backward(
    total: Array, scale: Array, cotangent: Array, passed: Array | None, form: Form
) -> tuple[Array, Array, Array]:
    blocks, (count, width) = _blocks(total), total.shape
    # Sums across warps are made of vectors of at most 16 bytes of float32.
    blocks = dataclasses.replace(blocks, vector=min(blocks.vector, 4))
    rows, layout, handed = blocks.tile_rows, blocks.layout, passed is not None
    total, cotangent, passed = at_least(total, rows), at_least(cotangent, rows), at_least(passed, rows)
    filled = total.shape[0]
    tiles = pl.cdiv(filled, rows)
    programs = min(blocks.programs, tiles)

    def body(*refs):
        present = (True, True, True, handed, True, True, True)
        total_ref, scale_ref, cotangent_ref, passed_ref, dx_ref, dscale_ref, dbias_ref = _named(refs, present)
        program = lax.axis_index("block")
        scales = block.along(load(scale_ref, layout.reduce(0)), rows)

        def step(index, sums):
            first = (program + index * programs) * rows
            start = jnp.minimum(first, filled - rows)
            here = pl.ds(start, rows)
            cotangent = load(cotangent_ref.at[here], layout)
            dx, dscale = block.gradient(load(total_ref.at[here], layout), scales, cotangent, form)
            if handed:
                dx = dx + load(passed_ref.at[here], layout)
            dx_ref.at[here][...] = stored(dx, dx_ref.dtype)
            # Rows that the block before has too count once.
            row = start + plgpu.broadcasted_iota(jnp.int32, (rows, width), 0, layout=layout)
            new = (jnp.where(row >= first, a, 0.0) for a in (dscale, cotangent))
            return tuple(old + addend for old, addend in zip(sums, new, strict=True))

        zeros = plgpu.layout_cast(jnp.zeros((rows, width), jnp.float32), layout)
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
        compiler_params=plgpu.CompilerParams(reduction_scratch_bytes=gpu_rows.WARPS * width * 4),
    )(*(a for a in (total, scale, cotangent, passed) if a is not None))
    return dx[:count], jnp.sum(dscale, axis=0), jnp.sum(dbias, axis=0)


def _named(refs: Any, present: tuple[bool, ...]) -> list:
    """The references in their places, None where there is no array."""
    remaining = iter(refs)
    return [next(remaining) if there else None for there in present]


_KERNELS = fused.Kernels(_forward, _backward)
