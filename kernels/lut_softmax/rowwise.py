"""The softmax of rows as the kernels do it: the rule of differentiation, and the arithmetic of a block of rows.

A block lies in registers or vector memory, in float32. What is one a row is a vector. `seen` is the mask.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp

from kernels.guard import called, differentiable, varying
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.table import Lookup
from kernels.rows import Mask, Span, across
from kernels.typing import Array, Bool, Float


def softmax(rows, rows_with_tables, scores: Array, mask: Array | None, tables: SoftmaxTables | None) -> Array:
    """As `reference.softmax` and `lut.softmax`, by the rows of a back end. Raises Unsupported for too many keys.

    Rows that share a mask, as attention's heads do, have it once.
    """
    rows = rows if tables is None else rows_with_tables
    rows.check(scores=scores)
    found = None if mask is None else _mask(mask, scores.shape)
    arrays = scores.reshape(-1, scores.shape[-1]), None if found is None else found.seen

    def forward(scores, seen):
        shared = None if found is None else found._replace(seen=seen)
        if tables is None:
            return tuple(rows.call(_exact, (scores,), mask=shared))
        entries = tables.exp.table.values, tables.reciprocal.table.values
        return tuple(rows.call(functools.partial(_from_tables, tables), (scores,), mask=shared, tables=entries))

    def backward(probabilities, cotangent):
        return *rows.call(_gradient, (probabilities, cotangent)), None

    if tables is not None:
        results: Any = called("lut_softmax", forward, *varying(*arrays))
    else:
        results = differentiable("lut_softmax", forward, lambda arrays, results: results, backward)(*arrays)
    return results[0].reshape(scores.shape)


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


# ------------------------------------------------------------------------- a block


def _exact(span: Span, scores: Array, seen: Array | None = None):
    """`reference.softmax`. What is not seen is -inf, whose exponential is zero."""
    scores, shift, _ = _shown(scores, seen, span)
    weights = jnp.exp(scores - across(shift, scores))
    return [weights * across(1.0 / _total(weights, span), weights)]


def _from_tables(
    tables: SoftmaxTables, span: Span, scores: Array, lookups: tuple[Lookup, Lookup], seen: Array | None = None
):
    """`lut.softmax`, with look-ups in `tables.exp` for each element and in `tables.reciprocal` for each row."""
    scores, largest, some = _shown(scores, seen, span)
    gather, pick = lookups
    low, high = tables.safe_window(span.width)
    rescaled = ((largest < low) | (largest > high)) & some
    headroom = across(jnp.where(rescaled, tables.headroom(span.width), 0), scores)
    exponentials = tables.exp(scores - across(jnp.where(rescaled, largest, 0.0), scores), headroom, gather)
    reciprocal, scale = tables.reciprocal.factors(_total(exponentials, span), pick)
    return [exponentials * across(reciprocal, scores) * across(scale, scores)]


def _gradient(span: Span, probabilities: Array, cotangent: Array):
    """ds = p (g - sum(p g))."""
    return [probabilities * (cotangent - across(span.total(probabilities * cotangent), cotangent))]


def _shown(
    scores: Float[Array, "rows keys"], seen: Bool[Array, "rows keys"] | None, span: Span
) -> tuple[Float[Array, "rows keys"], Float[Array, " rows"], Bool[Array, " rows"]]:
    """The scores, -inf where a key is not seen; the largest of each row, 0 where none is seen; whether one is seen."""
    shown = span.own(scores if seen is None else jnp.where(seen, scores, -jnp.inf), -jnp.inf)
    largest = span.largest(shown)
    return shown, jnp.where(largest > -jnp.inf, largest, 0.0), largest > -jnp.inf


def _total(weights: Array, span: Span) -> Array:
    """The sum of each row; 1 where nothing is seen."""
    total = span.total(weights)
    return jnp.where(total == 0.0, 1.0, total)
