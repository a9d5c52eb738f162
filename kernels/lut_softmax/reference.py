"""The definition of the masked softmax, in plain JAX."""

import jax
import jax.numpy as jnp

from kernels.typing import Array, Bool, Float


def softmax(scores: Float[Array, "*shape"], mask: Bool[Array, "*#shape"], axis: int = -1) -> Float[Array, "*shape"]:
    """Shifts by the largest unmasked score; a row without one sums to zero and is divided by one instead.

    In float32, whatever the format of the scores.
    """
    masked = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(masked, axis=axis, keepdims=True))
    weights = jnp.exp(masked - jnp.where(jnp.isfinite(largest), largest, 0.0))
    total = jnp.sum(weights, axis=axis, keepdims=True)
    return (weights / jnp.where(total == 0.0, 1.0, total)).astype(scores.dtype)
