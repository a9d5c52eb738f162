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
from kernels.guard import called, varying
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.table import Lookup, Table
from kernels.span import Span
from kernels.typing import Array, Bool, Float, Int


class Mask(NamedTuple):
    """Which keys are seen: row r of the scores has row r // (heads rows) rows + r % rows of the mask.

    Args:
        seen: (mask rows, keys).
        heads: that share `rows` rows of the mask.
    """

    seen: Bool[Array, "masks keys"]
    heads: int
    rows: int

    def row(self, row: Any) -> Any:
        """Of the mask, by that of the scores."""
        return row // (self.heads * self.rows) * self.rows + row % self.rows

    def whole(self, count: int) -> Bool[Array, "rows keys"]:
        """A row for each of the scores."""
        seen = self.seen.reshape(-1, 1, self.rows, self.seen.shape[1])
        return jnp.broadcast_to(seen, (len(seen), self.heads, *seen.shape[2:])).reshape(count, -1)


class Kernels(NamedTuple):
    """One pass over the rows each.

    Args:
        forward: scores (rows, keys), mask or None, tables or None -> probabilities.
        backward: probabilities and their cotangent -> the gradient of the scores.
    """

    forward: Callable[[Array, Mask | None, SoftmaxTables | None], Array]
    backward: Callable[[Array, Array], Array]


def softmax(kernels: Kernels, scores: Array, mask: Array | None, tables: SoftmaxTables | None) -> Array:
    """As `reference.softmax` and `lut.softmax`. Rows that share a mask have it once, as attention's heads do."""
    num_keys = scores.shape[-1]
    flat = scores.reshape(-1, num_keys)
    shared = seen = None
    if mask is not None:
        found = _mask(mask, scores.shape)
        seen, shared = found.seen, found[1:]
    flat, seen = varying(flat, seen)
    if tables is not None:
        result: Any = _probabilities(kernels, flat, seen, shared, tables)
    else:
        result = _softmax(kernels, flat, seen, shared)
    return result.reshape(scores.shape)


def _mask(mask: Array, shape: tuple[int, ...]) -> Mask:
    """Rows of a mask that broadcasts against scores of this shape; repeated where what is shared is not one stretch."""
    *batch, num_keys = shape
    mask = mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)
    mask = jnp.broadcast_to(mask, (*mask.shape[:-1], num_keys))
    # Axes of one element are nobody's.
    pairs = [(wanted, given) for wanted, given in zip(batch, mask.shape, strict=False) if wanted > 1]
    shared = [index for index, (wanted, given) in enumerate(pairs) if given < wanted]
    if shared != list(range(shared[0], shared[-1] + 1)) if shared else False:
        pairs, shared = [], []
        mask = jnp.broadcast_to(mask, shape)
    heads = math.prod(pairs[index][0] for index in shared)
    rows = math.prod(wanted for wanted, _ in pairs[shared[-1] + 1 :]) if shared else 1
    return Mask(mask.reshape(-1, num_keys), heads, rows)


def _probabilities(kernels: Kernels, scores, seen, shared, tables: SoftmaxTables | None) -> Array:
    def forward(scores, seen):
        return kernels.forward(scores, None if seen is None else Mask(seen, *shared), tables)

    return called("lut_softmax", forward, scores, seen)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _softmax(kernels: Kernels, scores: Array, seen: Array | None, shared: tuple[int, int] | None) -> Array:
    return _probabilities(kernels, scores, seen, shared, None)


def _forward(kernels: Kernels, scores, seen, shared):
    probabilities = _probabilities(kernels, scores, seen, shared, None)
    return probabilities, probabilities


def _backward(kernels: Kernels, shared, probabilities: Array, cotangent: Array):
    return called("lut_softmax", kernels.backward, probabilities, cotangent), None


_softmax.defvjp(_forward, _backward)


# ------------------------------------------------------------------------- a block


def exact(scores: Float[Array, "rows keys"], seen: Bool[Array, "rows keys"], span: Span) -> Float[Array, "rows keys"]:
    """`reference.softmax`."""
    largest, some = _largest(scores, seen, span)
    weights = jnp.where(seen, jnp.exp(scores - across(jnp.where(some, largest, 0.0), scores)), 0.0)
    return weights * across(1.0 / _total(weights, span), weights)


def from_tables(
    scores: Float[Array, "rows keys"],
    seen: Bool[Array, "rows keys"],
    tables: SoftmaxTables,
    span: Span,
    gather: Lookup,
    pick: Lookup,
) -> Float[Array, "rows keys"]:
    """`lut.softmax`.

    Args:
        gather: entries of the table of `tables.exp`, for each element of the block.
        pick: entries of the table of `tables.reciprocal`, for each row.
    """
    largest, some = _largest(scores, seen, span)
    low, high = tables.safe_window(span.width)
    rescaled = ((largest < low) | (largest > high)) & some
    shifted = jnp.where(seen, scores - across(jnp.where(rescaled, largest, 0.0), scores), 0.0)
    headroom = across(jnp.where(rescaled, tables.headroom(span.width), 0), scores)
    exponentials = jnp.where(seen, tables.exp(shifted, headroom, gather), 0.0)
    reciprocal, scale = tables.reciprocal.factors(_total(exponentials, span), pick)
    return exponentials * across(reciprocal, scores) * across(scale, scores)


def gradient(
    probabilities: Float[Array, "rows keys"], cotangent: Float[Array, "rows keys"], span: Span
) -> Float[Array, "rows keys"]:
    """ds = p (g - sum(p g))."""
    return probabilities * (cotangent - across(span.total(probabilities * cotangent), cotangent))


def one_hot(entries: Float[Array, "rows entries"], places: Int[Array, "rows entries"]) -> Lookup:
    """A look-up for one index a row: compares it with the places of all entries, the same in each row."""

    def pick(_: Table, index: Int[Array, " rows"]) -> Float[Array, " rows"]:
        return jnp.sum(jnp.where(places == across(index, entries), entries, 0.0), axis=1)

    return pick


def _largest(scores: Array, seen: Array, span: Span) -> tuple[Array, Array]:
    """The largest score of each row, and whether the row sees any."""
    largest = span.largest(jnp.where(seen, scores, -jnp.inf))
    return largest, largest > -jnp.inf


def _total(weights: Array, span: Span) -> Array:
    """Of each row; 1 where nothing is seen."""
    total = span.total(weights)
    return jnp.where(total == 0.0, 1.0, total)
