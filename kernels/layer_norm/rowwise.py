"""The normalisation of rows as the kernels do it: the rule of differentiation, and the arithmetic of a block of rows.

A block lies in registers or vector memory, in float32. Statistics are vectors with an element a row, spread over the
channels where they meet them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.broadcast import across
from kernels.guard import called, varying
from kernels.layer_norm.norm import Norm
from kernels.span import Span
from kernels.typing import Array, Float


class Kernels(NamedTuple):
    """One pass over the rows each: what goes in is read once, what comes out is written once.

    Args:
        forward: (x, residual or None, scale, bias or None, norm) -> y, and x + residual or None; x is (rows, channels).
        backward: (x + residual, scale, cotangent of y, that of x + residual or None, norm) -> gradients of x, scale
            and bias.
    """

    forward: Callable[..., tuple[Array, Array | None]]
    backward: Callable[..., tuple[Array, Array, Array]]


def normalise(
    kernels: Kernels, x: Array, residual: Array | None, scale: Array, bias: Array | None, norm: Norm
) -> tuple[Array, Array | None]:
    """As `reference.normalise`."""
    flat = (-1, x.shape[-1])
    added = None if residual is None else residual.reshape(flat)
    results: Any = _normalise(kernels, *varying(x.reshape(flat), added, scale, bias), norm)
    y, total = results
    return y.reshape(x.shape), None if total is None else total.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def _normalise(kernels: Kernels, x, residual, scale, bias, norm: Norm) -> tuple[Array, Array | None]:
    return _called(kernels, x, residual, scale, bias, norm)


def _called(kernels: Kernels, x, residual, scale, bias, norm: Norm) -> tuple[Array, Array | None]:
    return called("layer_norm", functools.partial(kernels.forward, norm=norm), x, residual, scale, bias)


def _forward(kernels: Kernels, x, residual, scale, bias, norm: Norm):
    y, total = _called(kernels, x, residual, scale, bias, norm)
    return (y, total), (x if total is None else total, residual, scale, bias)


def _backward(kernels: Kernels, norm: Norm, saved, cotangents):
    total, residual, scale, bias = saved
    cotangent, passed = cotangents
    backward = functools.partial(kernels.backward, norm=norm)
    dx, dscale, dbias = called("layer_norm", backward, total, scale, cotangent, passed)
    return (
        dx,
        None if residual is None else dx.astype(residual.dtype),
        dscale.astype(scale.dtype),
        None if bias is None else dbias.astype(bias.dtype),
    )


_normalise.defvjp(_forward, _backward)


# ------------------------------------------------------------------------- a block


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


def gradient(
    x: Float[Array, "rows channels"],
    scale: Float[Array, "#rows channels"],
    cotangent: Float[Array, "rows channels"],
    norm: Norm,
    span: Span,
) -> tuple[Float[Array, "rows channels"], Float[Array, "rows channels"]]:
    """dx, and x_hat * cotangent, whose sum over the rows is the gradient of the scale.

    dx = (g - mean(g) - x_hat mean(g x_hat)) / sqrt(mean c^2 + eps),  g = cotangent * scale; no mean(g) in RMSNorm.
    """
    x_hat, factor = standardised(x, norm, span)
    g = cotangent * scale
    inner = g - x_hat * across(span.mean(g * x_hat), x)
    if norm.centred:
        inner = inner - across(span.mean(g), x)
    return inner * across(factor, x), x_hat * cotangent


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
