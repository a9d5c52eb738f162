"""The softmax of rows as the kernels do it: the rule of differentiation, and the arithmetic of a block of rows.

A block lies in registers or vector memory, in float32. What is one a row is a vector, spread over the keys where it
meets them. `seen` is the mask.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.broadcast import across
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.table import Lookup, Table
from kernels.typing import Array, Bool, Float, Int


class Kernels(NamedTuple):
    """One pass over the rows each.

    Args:
        forward: scores (rows, keys), mask (rows, keys) or (1, keys) in int8, tables or None -> probabilities.
        backward: probabilities and their cotangent -> the gradient of the scores.
    """

    forward: Callable[[Array, Array, SoftmaxTables | None], Array]
    backward: Callable[[Array, Array], Array]


def softmax(kernels: Kernels, scores: Array, mask: Array, tables: SoftmaxTables | None) -> Array:
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


# ------------------------------------------------------------------------- a block


def exact(scores: Float[Array, "rows keys"], seen: Bool[Array, "rows keys"]) -> Float[Array, "rows keys"]:
    """`reference.softmax`."""
    largest, some = _largest(scores, seen)
    weights = jnp.where(seen, jnp.exp(scores - across(jnp.where(some, largest, 0.0), scores)), 0.0)
    return weights * across(1.0 / _total(weights), weights)


def from_tables(
    scores: Float[Array, "rows keys"],
    seen: Bool[Array, "rows keys"],
    tables: SoftmaxTables,
    num_keys: int,
    gather: Lookup,
    pick: Lookup,
) -> Float[Array, "rows keys"]:
    """`lut.softmax`.

    Args:
        num_keys: without those that only fill the block.
        gather: entries of the table of `tables.exp`, for each element of the block.
        pick: entries of the table of `tables.reciprocal`, for each row.
    """
    largest, some = _largest(scores, seen)
    low, high = tables.safe_window(num_keys)
    rescaled = ((largest < low) | (largest > high)) & some
    shifted = jnp.where(seen, scores - across(jnp.where(rescaled, largest, 0.0), scores), 0.0)
    headroom = across(jnp.where(rescaled, tables.headroom(num_keys), 0), scores)
    exponentials = jnp.where(seen, tables.exp(shifted, headroom, gather), 0.0)
    reciprocal, scale = tables.reciprocal.factors(_total(exponentials), pick)
    return exponentials * across(reciprocal, scores) * across(scale, scores)


def gradient(
    probabilities: Float[Array, "rows keys"], cotangent: Float[Array, "rows keys"]
) -> Float[Array, "rows keys"]:
    """ds = p (g - sum(p g))."""
    return probabilities * (cotangent - across(jnp.sum(probabilities * cotangent, axis=1), cotangent))


def one_hot(entries: Float[Array, "rows entries"], places: Int[Array, "rows entries"]) -> Lookup:
    """A look-up for one index a row: compares it with the places of all entries, the same in each row."""

    def pick(_: Table, index: Int[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.sum(jnp.where(places == across(index, entries), entries, 0.0), axis=1)

    return pick


def _largest(scores: Array, seen: Array) -> tuple[Array, Array]:
    """The largest score of each row, and whether the row sees any."""
    largest = jnp.max(jnp.where(seen, scores, -jnp.inf), axis=1)
    return largest, largest > -jnp.inf


def _total(weights: Array) -> Array:
    """Of each row; 1 where nothing is seen."""
    total = jnp.sum(weights, axis=1)
    return jnp.where(total == 0.0, 1.0, total)
