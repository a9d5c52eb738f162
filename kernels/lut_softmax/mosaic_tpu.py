"""Softmax on TPUs (Mosaic): blocks of rows stream through vector memory, tables are gathered along the lanes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels import tpu_rows
from kernels.lut_softmax import rowwise
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.rowwise import Mask
from kernels.lut_softmax.table import Lookup
from kernels.span import Span
from kernels.tpu_rows import LANES
from kernels.typing import Array, Float

_ROWS = tpu_rows.Rows("lut_softmax", "keys of scores", block_bytes=2**18)
candidates = _ROWS.candidates


def softmax(scores: Array, mask: Array | None, tables: SoftmaxTables | None) -> Array:
    """See `reference.softmax` and `lut.softmax`. Raises Unsupported for float16, and for too many keys."""
    _ROWS.check(scores=scores)
    return rowwise.softmax(_KERNELS, scores, mask, tables)


def _forward(scores: Array, mask: Mask | None, tables: SoftmaxTables | None) -> Array:
    count, num_keys = scores.shape
    entries = [] if tables is None else [lanes(tables.exp.table.values), lanes(tables.reciprocal.table.values)]

    def body(scores_ref, mask_ref, shared_ref, *refs):
        *table_refs, out_ref = refs
        x = scores_ref[...].astype(jnp.float32)
        seen, span = _inside(x, num_keys), Span(num_keys)
        if mask is not None:
            # Keys past the last one only fill the block, and so may the mask there.
            given = (shared_ref if mask_ref is None else mask_ref)[...].astype(jnp.int32)
            seen = jnp.where(seen, jnp.broadcast_to(given, x.shape), 0) > 0
        if tables is None:
            out = rowwise.exact(x, seen, span)
        else:
            exp_entries, reciprocals = (ref[...] for ref in table_refs)
            reciprocals = jnp.broadcast_to(reciprocals, (x.shape[0], reciprocals.shape[1]))
            pick = rowwise.one_hot(reciprocals, jax.lax.broadcasted_iota(jnp.int32, reciprocals.shape, 1))
            out = rowwise.from_tables(x, seen, tables, span, gather(exp_entries), pick)
        out_ref[...] = out.astype(out_ref.dtype)

    one = mask is not None and len(mask.seen) == 1 < count
    given = None if mask is None else (mask.seen if one else mask.whole(count)).astype(jnp.int8)  # it loads no bool
    tensors, others = ((scores, None), [given]) if one else ((scores, given), [None])
    others = [*others, *map(jnp.asarray, entries)]
    return tpu_rows.call(body, _ROWS.block(scores), tensors, others, whole_lanes=True)[0]


def _backward(probabilities: Array, cotangent: Array) -> Array:
    num_keys = probabilities.shape[1]

    def body(probabilities_ref, cotangent_ref, out_ref):
        arrays = [ref[...].astype(jnp.float32) for ref in (probabilities_ref, cotangent_ref)]
        inside = _inside(arrays[0], num_keys)
        arrays = [jnp.where(inside, a, 0.0) for a in arrays]
        out_ref[...] = rowwise.gradient(*arrays, Span(num_keys)).astype(out_ref.dtype)

    return tpu_rows.call(body, _ROWS.block(probabilities), (probabilities, cotangent), whole_lanes=True)[0]


def _inside(x: Array, num_keys: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < num_keys


def lanes(values: np.ndarray) -> np.ndarray:
    """A table as a row of whole registers."""
    return np.pad(values, (0, -len(values) % LANES))[None]


def gather(entries: Float[Array, "1 entries"]) -> Lookup:
    """A look-up for each element: one gather along the lanes for every 128 entries, and 128 keys at a time."""

    def lookup(table: Any, index: Array) -> Array:
        parts = [entries[:, first : first + LANES] for first in range(0, entries.shape[1], LANES)]
        parts = [jnp.broadcast_to(part, (index.shape[0], LANES)) for part in parts]
        columns = []
        for first in range(0, index.shape[1], LANES):
            wanted = index[:, first : first + LANES]
            found = jnp.take_along_axis(parts[0], wanted % LANES, axis=1)
            for number, part in enumerate(parts[1:], 1):
                here = wanted // LANES == number
                found = jnp.where(here, jnp.take_along_axis(part, wanted % LANES, axis=1), found)
            columns.append(found)
        return columns[0] if len(columns) == 1 else jnp.concatenate(columns, axis=1)

    return lookup


_KERNELS = rowwise.Kernels(_forward, _backward)
