"""The arithmetic of a block of rows held in registers or vector memory, the same for every kernel.

In float32; statistics are vectors with an element a row, spread over the channels where they meet them.
"""

import jax.numpy as jnp
from jax import lax

from kernels.layer_norm.form import Form
from kernels.typing import Array, Float


def normalised(
    x: Float[Array, "rows channels"], form: Form
) -> tuple[Float[Array, "rows channels"], Float[Array, " rows"]]:
    """x_hat = c / sqrt(mean c^2 + eps), and the factor 1 / sqrt(mean c^2 + eps) of each row."""
    width = x.shape[1]
    c = x - across(jnp.sum(x, axis=1) / width, x) if form.centred else x
    inverse = _inverse_scale(c, form)
    if inverse is None:
        factor = lax.rsqrt(jnp.sum(c * c, axis=1) / width + form.eps)
        return c * across(factor, c), factor
    z = c * across(inverse, c)
    root_eps = form.eps**0.5 * inverse
    factor = lax.rsqrt(jnp.sum(z * z, axis=1) / width + root_eps * root_eps)
    return z * across(factor, z), factor * inverse


def gradient(
    x: Float[Array, "rows channels"],
    scale: Float[Array, "#rows channels"],
    cotangent: Float[Array, "rows channels"],
    form: Form,
) -> tuple[Float[Array, "rows channels"], Float[Array, "rows channels"]]:
    """dx, and x_hat * cotangent, whose sum over the rows is the gradient of the scale.

    dx = (g - mean(g) - x_hat mean(g x_hat)) / sqrt(mean c^2 + eps),  g = cotangent * scale; no mean(g) in RMSNorm.
    """
    x_hat, factor = normalised(x, form)
    g = cotangent * scale
    width = x.shape[1]
    inner = g - x_hat * across(jnp.sum(g * x_hat, axis=1) / width, x)
    if form.centred:
        inner = inner - across(jnp.sum(g, axis=1) / width, x)
    return inner * across(factor, x), x_hat * cotangent


def across(row: Float[Array, " rows"], block: Float[Array, "rows channels"]) -> Float[Array, "rows channels"]:
    """One value a row, for each of its channels."""
    return lax.broadcast_in_dim(row, block.shape, (0,))


def along(channel: Float[Array, " channels"], rows: int) -> Float[Array, "rows channels"]:
    """One value a channel, for each row."""
    return lax.broadcast_in_dim(channel, (rows, *channel.shape), (1,))


def _inverse_scale(c: Float[Array, "rows channels"], form: Form) -> Float[Array, " rows"] | None:
    """1 / s of each row; None for one (see `reference`)."""
    norm, magnitude, width = form.pre_normaliser, jnp.abs(c), c.shape[1]
    match norm.surrogate:
        case "none":
            return None if norm.static == 1 else jnp.full(c.shape[:1], 1 / norm.static)
        case "max":
            s = jnp.max(magnitude, axis=1)
        case "mad":
            s = jnp.sum(magnitude, axis=1) / width
        case _:
            s = jnp.sqrt(jnp.sum(magnitude, axis=1) / width) * jnp.sqrt(jnp.max(magnitude, axis=1))
    return 1.0 / jnp.maximum(s, form.smallest_scale)
