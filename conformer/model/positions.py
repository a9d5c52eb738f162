"""The sinusoids by which positions enter the scores of attention; models with a learned bias do not use them."""

import jax.numpy as jnp
import numpy as np

from kernels.typing import Array, Float, Int


def frequencies(dim: int) -> Float[np.ndarray, " half"]:
    """Radians a frame of each pair of sine and cosine (Vaswani et al., 2017)."""
    return np.exp(np.arange(0, dim, 2) * -(np.log(10_000.0) / dim)).astype(np.float32)


def sinusoids(positions: Float[Array, "*shape"], dim: int) -> Float[Array, "*shape channels"]:
    """The encoding of each position: a sine at every even channel, its cosine behind it."""
    angles = positions[..., None] * frequencies(dim)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, dim)


def distance_sinusoids(num_queries: int, num_keys: int, dim: int) -> Float[np.ndarray, "distances channels"]:
    """The encodings of all distances from a key to a query, descending; the queries are the last of the keys."""
    return known_sinusoids(np.arange(num_keys - 1, -num_queries, -1), dim)


def known_sinusoids(positions: Int[np.ndarray, " positions"], dim: int) -> Float[np.ndarray, "positions channels"]:
    """The encodings of positions known before tracing: computed in float64, outside of the compiled function."""
    angles = positions[:, None] * np.exp(np.arange(0, dim, 2) * -(np.log(10_000.0) / dim))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(positions), dim).astype(np.float32)
