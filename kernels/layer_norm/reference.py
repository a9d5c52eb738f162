"""The definitions of layer and root-mean-square normalisation, in plain JAX."""

import jax
import jax.numpy as jnp

from kernels.layer_norm.form import Form, stored
from kernels.typing import Array, Float


def normalise(
    x: Float[Array, "*shape"],
    residual: Float[Array, "*shape"] | None,
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"] | None,
    form: Form,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"] | None]:
    """The normalisation (see `Form`) of x + residual, and that sum (None without a residual), in the format of x."""
    total = x if residual is None else stored(x.astype(jnp.float32) + residual.astype(jnp.float32), x.dtype)
    c = total.astype(jnp.float32)
    after = range(1, x.ndim - form.axis % x.ndim)  # axes behind the channels'
    scale = jnp.expand_dims(scale, after)
    if form.centred:  # first; E[x^2] - mean^2 would cancel for inputs with a large mean
        c = c - jnp.mean(c, axis=form.axis, keepdims=True)
    s = _scale(c, form)
    z = c if s is None else c / s
    eps = form.eps if s is None else jnp.square(form.eps**0.5 / s)
    y = z * jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=form.axis, keepdims=True) + eps) * scale
    return stored(y if bias is None else y + jnp.expand_dims(bias, after), x.dtype), None if residual is None else total


def _scale(c: Float[Array, "*shape"], form: Form) -> Float[Array, "..."] | float | None:
    """s; None for one. The result does not depend on it, so neither does its gradient."""
    norm = form.pre_normaliser
    if norm.surrogate == "none":
        return None if norm.static == 1 else norm.static
    magnitude = jax.lax.stop_gradient(jnp.abs(c))
    match norm.surrogate:
        case "max":
            s = jnp.max(magnitude, axis=form.axis, keepdims=True)
        case "mad":
            s = jnp.mean(magnitude, axis=form.axis, keepdims=True)
        case _:
            largest = jnp.max(magnitude, axis=form.axis, keepdims=True)
            s = jnp.sqrt(jnp.mean(magnitude, axis=form.axis, keepdims=True)) * jnp.sqrt(
                largest
            )  # their product may overflow
    return jnp.maximum(s, form.smallest_scale)
