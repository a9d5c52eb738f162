"""Normalisation on NVIDIA GPUs (Mosaic GPU): rows in registers (`kernels.gpu_rows`)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import gpu_rows
from kernels.formats import stored
from kernels.gpu_rows import laid, unlaid
from kernels.layer_norm import rowwise
from kernels.layer_norm.norm import Norm
from kernels.typing import Array

_ROWS = gpu_rows.Rows("layer_norm", "channels of x", per_lane=32)  # with twice as many the backward pass spills
candidates = _ROWS.candidates


def normalise(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    """See `reference.normalise`. Raises Unsupported for too many channels.

    Those that cannot be spread evenly over threads are filled up, by a copy.
    """
    _ROWS.filled(x.shape[-1])
    return rowwise.normalise(_KERNELS, x, residual, scale, bias, norm)


def _forward(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    threads, (count, width) = _ROWS.threads(x), x.shape
    filled = _ROWS.filled(width)[0]

    def body(block, row, x_ref, residual_ref, scale_ref, bias_ref, y_ref, total_ref=None):
        here, x = block.place(row), block.load(x_ref, row)
        if total_ref is not None:
            total = stored(x + block.load(residual_ref, row), total_ref.dtype)
            total_ref.at[here][...] = total
            x = total.astype(jnp.float32)
        y = rowwise.standardised(x, norm, block.span)[0] * block.columns(scale_ref)
        if bias_ref is not None:
            y = y + block.columns(bias_ref)
        y_ref.at[here][...] = stored(y, y_ref.dtype)

    x, residual, scale, bias = (laid(a, threads, filled, threads.rows) for a in (x, residual, scale, bias))
    results = 1 if residual is None else 2
    y, *total = gpu_rows.call(body, threads, (x, residual), (scale, bias), results, width=width)
    return unlaid(y, threads, count, width), unlaid(total[0], threads, count, width) if total else None


def _backward(
    total: Array, scale: Array, cotangent: Array, passed: Array | None, norm: Norm
) -> tuple[Array, Array, Array]:
    threads, (count, width) = _ROWS.threads(total), total.shape
    filled = _ROWS.filled(width)[0]
    # Sums across warps are made of vectors of at most 16 bytes of float32.
    threads = dataclasses.replace(threads, vector=min(threads.vector, 4), rows=threads.tile_rows)
    total, scale, cotangent, passed = (
        laid(a, threads, filled, threads.rows) for a in (total, scale, cotangent, passed)
    )
    whole = threads.parts > 1  # a block has one row, and the sums of each column are where they belong
    rows = 1 if whole else threads.rows
    at_least = len(total) // threads.parts
    tiles = pl.cdiv(at_least, rows)
    programs = min(threads.programs, tiles)

    def body(block, program, total_ref, scale_ref, cotangent_ref, passed_ref, dx_ref, dscale_ref, dbias_ref):
        scales = block.columns(scale_ref)

        def step(index, sums):
            first = (program + index * programs) * rows
            start = jnp.minimum(first, at_least - rows)
            cotangent = block.load(cotangent_ref, start)
            dx, dscale = rowwise.gradient(block.load(total_ref, start), scales, cotangent, norm, block.span)
            if passed_ref is not None:
                dx = dx + block.load(passed_ref, start)
            dx_ref.at[block.place(start)][...] = stored(dx, dx_ref.dtype)
            if not whole:
                # Rows that the block before has too count once, and those that only fill it up not at all.
                row = start + block.index(0)
                counted = (row >= first) & (row < count)
                dscale, cotangent = (jnp.where(counted, a, 0.0) for a in (dscale, cotangent))
            return tuple(old + addend for old, addend in zip(sums, (dscale, cotangent), strict=True))

        zeros = plgpu.layout_cast(jnp.zeros(block.shape, jnp.float32), threads.layout)
        steps = (tiles - program + programs - 1) // programs
        sums = lax.fori_loop(0, steps, step, (zeros, zeros))
        for ref, value in zip((dscale_ref, dbias_ref), sums, strict=True):
            ref.at[block.place(program) if whole else program][...] = value if whole else jnp.sum(value, axis=0)

    partial = jax.ShapeDtypeStruct((programs * threads.parts, filled // threads.parts), jnp.float32)
    out_type = (jax.ShapeDtypeStruct(total.shape, total.dtype), partial, partial)
    arrays = total, scale, cotangent, passed
    scratch = 0 if whole else gpu_rows.WARPS * filled * 4
    dx, *partials = gpu_rows.run(body, threads, width, filled, programs, out_type, arrays, scratch)
    dscale, dbias = (jnp.sum(unlaid(a, threads, programs, width), axis=0) for a in partials)
    return unlaid(dx, threads, count, width), dscale, dbias


_KERNELS = rowwise.Kernels(_forward, _backward)
