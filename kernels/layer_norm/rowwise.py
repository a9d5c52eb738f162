"""The normalisation of rows as the kernels do it: the rule of differentiation, and the arithmetic of a block of rows.

A block lies in registers or vector memory, in float32. A statistic is a vector with an element for each row.
"""

import functools

import jax.numpy as jnp
from jax import lax

from kernels.formats import stored
from kernels.guard import differentiable
from kernels.layer_norm.norm import Norm
from kernels.rows import Span, across
from kernels.typing import Array, Float


def normalise(
    rows, x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    """As `reference.normalise`, by the rows of a back end. Raises Unsupported for too many channels."""
    rows.check(x=x, residual=residual)
    results = 1 if residual is None else 2

    def forward(x, residual, scale, bias):
        body = functools.partial(_forward, norm, x.dtype)
        return tuple(rows.call(body, (x, residual), (scale, bias), results=results))

    def kept(arrays, results):
        return (arrays[0] if residual is None else results[1]), arrays[2]

    def backward(total, scale, cotangent, passed=None):
        body = functools.partial(_backward, norm)
        dx, dscale, dbias = rows.call(body, (total, cotangent, passed), (scale,), sums=2)
        wanted = zip((x, residual, scale, bias), (dx, dx, dscale, dbias), strict=True)
        return tuple(None if like is None else gradient.astype(like.dtype) for like, gradient in wanted)

    flat = (-1, x.shape[-1])
    added = None if residual is None else residual.reshape(flat)
    function = differentiable("layer_norm", forward, kept, backward)
    found = [y.reshape(x.shape) for y in function(x.reshape(flat), added, scale, bias)]
    return found[0], None if residual is None else found[1]


def _forward(norm: Norm, format, span: Span, x, residual, scale, bias):
    if residual is not None:
        x = stored(x + residual, format).astype(jnp.float32)
    y = standardised(x, norm, span)[0] * scale()
    y = y if bias is None else y + bias()
    return [y] if residual is None else [y, x]


def _backward(norm: Norm, span: Span, total, cotangent, passed, scale, add):
    """dx = (g - mean(g) - x_hat mean(g x_hat)) / sqrt(mean c^2 + eps),  g = cotangent scale; no mean(g) in RMSNorm."""
    x_hat, factor = standardised(total, norm, span)
    add(x_hat * cotangent, cotangent)  # the gradients of scale and bias, row by row
    g = cotangent * scale()
    inner = g - x_hat * across(span.mean(g * x_hat), g)
    if norm.centred:
        inner = inner - across(span.mean(g), g)
    dx = inner * across(factor, g)
    return [dx if passed is None else dx + passed]


def standardised(
    x: Float[Array, "rows channels"], norm: Norm, span: Span
) -> tuple[Float[Array, "rows channels"], Float[Array, " rows"]]:
    """x_hat = c / sqrt(mean c^2 + eps), and the factor 1 / sqrt(mean c^2 + eps) of each row."""
    c = span.own(x - across(span.mean(x), x)) if norm.centred else x
    inverse = _inverse_scale(c, norm, span)
    if inverse is None:
        factor = lax.rsqrt(span.mean(c * c) + norm.eps)
        return c * across(factor, c), factor
    z = c * across(inverse, c)
    root_eps = norm.eps**0.5 * inverse
    factor = lax.rsqrt(span.mean(z * z) + root_eps * root_eps)
    return z * across(factor, z), factor * inverse


def _inverse_scale(c: Float[Array, "rows channels"], norm: Norm, span: Span) -> Float[Array, " rows"] | None:
    """1 / s of each row; None for one (see `reference`)."""
    magnitude = jnp.abs(c)
    match norm.pre_normaliser.surrogate:
        case "none":
            static = norm.pre_normaliser.static
            return None if static == 1 else jnp.full(c.shape[:1], 1 / static)
        case "max":
            s = span.largest(magnitude)
        case "mad":
            s = span.mean(magnitude)
        case _:
            s = jnp.sqrt(span.mean(magnitude)) * jnp.sqrt(span.largest(magnitude))
    return 1.0 / jnp.maximum(s, norm.smallest_scale)
