"""The definitions of layer and root-mean-square normalisation, in plain JAX."""

import jax
import jax.numpy as jnp

from kernels.typing import Array, Float


def layer_norm(
    x: Float[Array, "*shape"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    eps: float,
    axis: int,
) -> Float[Array, "*shape"]:
    """Centres first and then squares: E[x^2] - mean^2 would cancel for inputs with a large mean."""
    centred = x - jnp.mean(x, axis=axis, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=axis, keepdims=True)
    scale, bias = (jnp.expand_dims(a, range(1, x.ndim - axis % x.ndim)) for a in (scale, bias))
    return centred * jax.lax.rsqrt(variance + eps) * scale + bias


def rms_norm(
    x: Float[Array, "*batch channels"], scale: Float[Array, " channels"], eps: float
) -> Float[Array, "*batch channels"]:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * scale
