"""Normalisation on NVIDIA GPUs (Mosaic GPU): rows in registers (`kernels.gpu_rows`)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import gpu_rows
from kernels.broadcast import along
from kernels.formats import stored
from kernels.gpu_rows import at_least, load
from kernels.layer_norm import rowwise
from kernels.layer_norm.norm import Norm
from kernels.typing import Array

_ROWS = gpu_rows.Rows("layer_norm", "channels of x", per_lane=32)  # with twice as many the backward pass spills
candidates = _ROWS.candidates


def normalise(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    """See `reference.normalise`. Raises Unsupported for widths that cannot be spread over threads."""
    _ROWS.heuristic(x.shape[-1], x.dtype)
    return rowwise.normalise(_KERNELS, x, residual, scale, bias, norm)


def _forward(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    threads = _ROWS.threads(x)
    layout = threads.layout

    def body(here, x_ref, residual_ref, scale_ref, bias_ref, y_ref, total_ref=None):
        x = load(x_ref.at[here], layout)
        if total_ref is not None:
            total = stored(x + load(residual_ref.at[here], layout), total_ref.dtype)
            total_ref.at[here][...] = total
            x = total.astype(jnp.float32)
        x_hat, _ = rowwise.standardised(x, norm)
        y = x_hat * along(load(scale_ref, layout.reduce(0)), threads.rows)
        if bias_ref is not None:
            y = y + along(load(bias_ref, layout.reduce(0)), threads.rows)
        y_ref.at[here][...] = stored(y, y_ref.dtype)

    y, *total = gpu_rows.call(body, threads, (x, residual), (scale, bias), results=1 if residual is None else 2)
    return y, total[0] if total else None


def _backward(
    total: Array, scale: Array, cotangent: Array, passed: Array | None, norm: Norm
) -> tuple[Array, Array, Array]:
    threads, (count, width) = _ROWS.threads(total), total.shape
    # Sums across warps are made of vectors of at most 16 bytes of float32.
    threads = dataclasses.replace(threads, vector=min(threads.vector, 4))
    rows, layout = threads.tile_rows, threads.layout
    total, cotangent, passed = at_least(total, rows), at_least(cotangent, rows), at_least(passed, rows)
    filled = total.shape[0]
    tiles = pl.cdiv(filled, rows)
    programs = min(threads.programs, tiles)

    def body(total_ref, scale_ref, cotangent_ref, passed_ref, dx_ref, dscale_ref, dbias_ref):
        program = lax.axis_index("block")
        scales = along(load(scale_ref, layout.reduce(0)), rows)

        def step(index, sums):
            first = (program + index * programs) * rows
            start = jnp.minimum(first, filled - rows)
            here = pl.ds(start, rows)
            cotangent = load(cotangent_ref.at[here], layout)
            dx, dscale = rowwise.gradient(load(total_ref.at[here], layout), scales, cotangent, norm)
            if passed_ref is not None:
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
    )(total, scale, cotangent, passed)
    return dx[:count], jnp.sum(dscale, axis=0), jnp.sum(dbias, axis=0)


_KERNELS = rowwise.Kernels(_forward, _backward)
