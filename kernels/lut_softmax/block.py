"""The arithmetic of a block of rows held in registers or vector memory, the same for every kernel.

In float32; what is one a row is a vector, spread over the keys where it meets them. `seen` is the mask.
"""

import jax.numpy as jnp
from jax import lax

from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.table import Lookup, Table
from kernels.typing import Array, Bool, Float, Int


def softmax(
    scores: Float[Array, "rows keys"],
    seen: Bool[Array, "rows keys"],
    tables: SoftmaxTables | None,
    num_keys: int,
    gather: Lookup,
    pick: Lookup,
) -> Float[Array, "rows keys"]:
    """`reference.softmax`, or `lut.softmax` with tables.

    Args:
        num_keys: without those that only fill the block.
        gather: entries of the table of `tables.exp`, for each element of the block.
        pick: entries of the table of `tables.reciprocal`, for each row.
    """
    largest = jnp.max(jnp.where(seen, scores, -jnp.inf), axis=1)
    some = largest > -jnp.inf
    if tables is None:
        weights = jnp.where(seen, jnp.exp(scores - across(jnp.where(some, largest, 0.0), scores)), 0.0)
        return weights * across(1.0 / _total(weights), weights)
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


def across(row: Array, block: Array) -> Array:
    """One value a row, for each of its keys."""
    return lax.broadcast_in_dim(row, block.shape, (0,))


def one_hot(entries: Float[Array, "rows entries"], places: Int[Array, "rows entries"]) -> Lookup:
    """A look-up for one index a row: compares it with the places of all entries, the same in each row."""

    def pick(_: Table, index: Int[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.sum(jnp.where(places == across(index, entries), entries, 0.0), axis=1)

    return pick


def _total(weights: Array) -> Array:
    """Of each row; 1 where nothing is seen."""
    total = jnp.sum(weights, axis=1)
    return jnp.where(total == 0.0, 1.0, total)
