"""Muon: linear maps move by the orthogonal factor of their momentum (Jordan et al., 2024)."""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kernels.typing import Array, Float

MAP_WIDTH = 32  # inputs and outputs of a linear map, at least; narrower ones are moved by AdamW
MOMENTUM = 0.95
UPDATE_RMS = 0.2  # that of an AdamW update, so that both take the same learning rate (Liu et al., 2025, eq. 4)
STEPS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan's quintic: steepest at 0, singular values end in about [0.7, 1.2]


def muon(
    learning_rate: optax.Schedule, *, b2: float, weight_decay: float, precision: Any = jnp.float32
) -> optax.GradientTransformation:
    """Muon for linear maps; AdamW with Nesterov's momentum, without decay, for whatever else there is.

    Args:
        precision: format of the products that orthogonalise. bfloat16 is enough (it is the reference's); float32
            gives the same update on any number of devices, to rounding.
    """
    return optax.partition(
        {
            "muon": optax.chain(
                optax.trace(MOMENTUM, nesterov=True),
                optax.stateless(lambda updates, _: orthogonalise_all(updates, precision)),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(learning_rate),
            ),
            "adamw": optax.adamw(learning_rate, b2=b2, weight_decay=0.0, nesterov=True),
        },
        lambda params: jax.tree.map(lambda p: "muon" if is_linear_map(p) else "adamw", params),
    )


def is_linear_map(param: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether a parameter is a linear map, not biases by distance nor the taps of a depthwise convolution."""
    return param.ndim == 2 and min(param.shape) >= MAP_WIDTH


def orthogonalise_all(updates: Any, precision: Any = jnp.float32) -> Any:
    """Each matrix [rows, columns] of a tree as its orthogonal factor, with root mean square UPDATE_RMS.

    One loop for each shape: a sixth of the program, and half of the time on a processor, that one expression for each
    matrix takes.
    """
    leaves, structure = jax.tree.flatten(updates)
    by_shape = collections.defaultdict(list)
    for index, leaf in enumerate(leaves):
        by_shape[tuple(sorted(leaf.shape))].append(index)
    for shape, indices in by_shape.items():
        wide = jnp.stack([leaves[i] if leaves[i].shape == shape else leaves[i].T for i in indices])
        factors = UPDATE_RMS * math.sqrt(shape[1]) * jax.lax.map(lambda matrix: orthogonalise(matrix, precision), wide)
        for i, factor in zip(indices, factors, strict=True):
            leaves[i] = factor if leaves[i].shape == shape else factor.T
    return jax.tree.unflatten(structure, leaves)


def orthogonalise(matrix: Float[Array, "rows columns"], precision: Any) -> Float[Array, "rows columns"]:
    """About U V^T of the matrix U S V^T, rows <= columns, by Newton and Schulz's iteration:

    X <- a X + (b A + c A A) X, A = X X^T, from X = matrix / |matrix| on.
    """
    a, b, c = COEFFICIENTS
    x = (matrix / (jnp.linalg.norm(matrix) + 1e-8)).astype(precision)
    for _ in range(STEPS):
        gram = jnp.einsum("ij,kj->ik", x, x)  # twice as fast on a processor as x @ x.T, whose transpose XLA makes
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.astype(matrix.dtype)
