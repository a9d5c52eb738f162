"""The definitions of layer and root-mean-square normalisation, in plain JAX."""

import jax
import jax.numpy as jnp

from kernels.formats import stored
from kernels.layer_norm.norm import Norm
from kernels.typing import Array, Float


def normalise(
    x: Float[Array, "*shape"],
    residual: Float[Array, "*shape"] | None,
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"] | None,
    norm: Norm,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"] | None]:
    """The normalisation (see `Norm`) of x + residual, and that sum (None without a residual), in the format of x."""
    total = x if residual is None else stored(x.astype(jnp.float32) + residual.astype(jnp.float32), x.dtype)
    c = total.astype(jnp.float32)
    after = range(1, x.ndim - norm.axis % x.ndim)  # axes behind the channels'
    scale = jnp.expand_dims(scale, after)
    if norm.centred:  # first; E[x^2] - mean^2 would cancel for inputs with a large mean
        c = c - jnp.mean(c, axis=norm.axis, keepdims=True)
    s = _scale(c, norm)
    z = c if s is None else c / s
    eps = norm.eps if s is None else jnp.square(norm.eps**0.5 / s)
    y = z * jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=norm.axis, keepdims=True) + eps) * scale
    return stored(y if bias is None else y + jnp.expand_dims(bias, after), x.dtype), None if residual is None else total


def _scale(c: Float[Array, "*shape"], norm: Norm) -> Float[Array, "..."] | float | None:
    """s; None for one. The result does not depend on it, so neither does its gradient."""
    pre_normaliser = norm.pre_normaliser
    if pre_normaliser.surrogate == "none":
        return None if pre_normaliser.static == 1 else pre_normaliser.static
    magnitude = jax.lax.stop_gradient(jnp.abs(c))
    match pre_normaliser.surrogate:
        case "max":
            s = jnp.max(magnitude, axis=norm.axis, keepdims=True)
        case "mad":
            s = jnp.mean(magnitude, axis=norm.axis, keepdims=True)
        case _:
            largest = jnp.max(magnitude, axis=norm.axis, keepdims=True)
            mad = jnp.mean(magnitude, axis=norm.axis, keepdims=True)
            s = jnp.sqrt(mad) * jnp.sqrt(largest)  # their product may overflow
    return jnp.maximum(s, norm.smallest_scale)
