"""Normalisation on TPUs (Mosaic): blocks of rows stream through vector memory."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels import tpu_rows
from kernels.formats import stored
from kernels.layer_norm import rowwise
from kernels.layer_norm.norm import Norm
from kernels.span import Span
from kernels.typing import Array

_ROWS = tpu_rows.Rows("layer_norm", "channels of x", block_bytes=2**19)
candidates = _ROWS.candidates


def normalise(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    """See `reference.normalise`. Raises Unsupported for float16, and for too many channels."""
    _ROWS.check(x=x, residual=residual)
    return rowwise.normalise(_KERNELS, x, residual, scale, bias, norm)


def _forward(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    def body(x_ref, residual_ref, scale_ref, bias_ref, y_ref, total_ref=None):
        x = _load(x_ref)
        if total_ref is not None:
            total = stored(x + _load(residual_ref), total_ref.dtype)
            total_ref[...] = total
            x = total.astype(jnp.float32)
        y = rowwise.standardised(x, norm, Span(x.shape[1]))[0] * _load(scale_ref)
        if bias_ref is not None:
            y = y + _load(bias_ref)
        y_ref[...] = stored(y, y_ref.dtype)

    parameters = scale[None], None if bias is None else bias[None]
    results = 1 if residual is None else 2
    y, *total = tpu_rows.call(body, _ROWS.block(x), (x, residual), parameters, results)
    return y, total[0] if total else None


def _backward(
    total: Array, scale: Array, cotangent: Array, passed: Array | None, norm: Norm
) -> tuple[Array, Array, Array]:
    rows, count = _ROWS.block(total), len(total)

    def body(total_ref, cotangent_ref, passed_ref, scale_ref, dx_ref, dscale_ref, dbias_ref):
        index = pl.program_id(0)
        cotangent = _load(cotangent_ref)
        span = Span(cotangent.shape[1])
        dx, dscale = rowwise.gradient(_load(total_ref), _load(scale_ref), cotangent, norm, span)
        if passed_ref is not None:
            dx = dx + _load(passed_ref)
        dx_ref[...] = stored(dx, dx_ref.dtype)
        # The last block reads past the end: whatever stands there counts for nothing.
        inside = index * rows + jax.lax.broadcasted_iota(jnp.int32, dx.shape, 0) < count
        for ref, addends in ((dscale_ref, dscale), (dbias_ref, cotangent)):
            sums = jnp.sum(jnp.where(inside, addends, 0.0), axis=0, keepdims=True)

            @pl.when(index == 0)
            def _(ref=ref, sums=sums):
                ref[...] = sums

            @pl.when(index > 0)
            def _(ref=ref, sums=sums):
                ref[...] += sums

    dx, dscale, dbias = tpu_rows.call(body, rows, (total, cotangent, passed), (scale[None],), sums=2)
    return dx, dscale[0], dbias[0]


def _load(ref) -> Array:
    return ref[...].astype(jnp.float32)


_KERNELS = rowwise.Kernels(_forward, _backward)
