"""The softmax of a kernel: rows laid flat, and a gradient that the kernel computes too."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.lut_softmax.lut import SoftmaxTables
from kernels.typing import Array, Bool, Float


class Kernels(NamedTuple):
    """One pass over the rows each.

    Args:
        forward: scores (rows, keys), mask (rows, keys) or (1, keys) in int8, tables or None -> probabilities.
        backward: probabilities and their cotangent -> the gradient of the scores.
    """

    forward: Callable[[Array, Array, SoftmaxTables | None], Array]
    backward: Callable[[Array, Array], Array]


def softmax(
    kernels: Kernels,
    scores: Float[Array, "*batch keys"],
    mask: Bool[Array, "*#batch keys"],
    tables: SoftmaxTables | None,
) -> Float[Array, "*batch keys"]:
    """As `reference.softmax` and `lut.softmax`. A mask that is the same for every row is read once a block."""
    num_keys = scores.shape[-1]
    if math.prod(mask.shape[:-1]) > 1:
        mask = jnp.broadcast_to(mask, scores.shape)
    mask = jnp.broadcast_to(mask, (*mask.shape[:-1], num_keys)).reshape(-1, num_keys).astype(jnp.int8)
    flat = scores.reshape(-1, num_keys)
    result: Any = kernels.forward(flat, mask, tables) if tables is not None else _softmax(kernels, flat, mask)
    return result.reshape(scores.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(kernels: Kernels, scores: Array, mask: Array) -> Array:
    return kernels.forward(scores, mask, None)


def _forward(kernels: Kernels, scores: Array, mask: Array):
    probabilities = kernels.forward(scores, mask, None)
    return probabilities, probabilities


def _backward(kernels: Kernels, probabilities: Array, cotangent: Array):
    return kernels.backward(probabilities, cotangent), None


_softmax.defvjp(_forward, _backward)
