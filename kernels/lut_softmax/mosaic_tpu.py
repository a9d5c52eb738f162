"""Softmax on TPUs (Mosaic): blocks of rows stream through vector memory, tables are gathered along the lanes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import tpu_rows
from kernels.autotune import tuned
from kernels.implementation import Unsupported
from kernels.lut_softmax import block, fused
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.table import Lookup
from kernels.tpu_rows import WIDEST, Blocks
from kernels.typing import Array, Bool, Float

LANES = 128  # entries that one gather reaches
_BLOCK_BYTES = 2**18  # of a block in float32


def softmax(
    scores: Float[Array, "*batch keys"], mask: Bool[Array, "*#batch keys"], tables: SoftmaxTables | None
) -> Float[Array, "*batch keys"]:
    """See `reference.softmax` and `lut.softmax`. Raises Unsupported for float16, and for too many keys."""
    if scores.dtype == jnp.float16:
        raise Unsupported(
            "softmax: scores are float16, which TPUs cannot load: cast them to bfloat16 or float32, or use "
            "implementation='xla'"
        )
    if scores.shape[-1] > WIDEST:
        raise Unsupported(
            f"softmax: scores have {scores.shape[-1]} keys, and a block of vector memory holds rows of {WIDEST}: "
            "use implementation='xla'"
        )
    return fused.softmax(_KERNELS, scores, mask, tables)


def heuristic(width: int) -> Blocks:
    """Blocks for a number of keys that was not measured."""
    return tpu_rows.heuristic(width, _BLOCK_BYTES)


def _forward(scores: Array, mask: Array, tables: SoftmaxTables | None) -> Array:
    num_keys = scores.shape[1]
    entries = [] if tables is None else [lanes(tables.exp.table.values), lanes(tables.reciprocal.table.values)]

    def body(scores_ref, mask_ref, *refs):
        *table_refs, out_ref = refs
        x = scores_ref[...].astype(jnp.float32)
        # Keys past the last one only fill the block, and so may the mask there.
        inside = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < num_keys
        seen = jnp.broadcast_to(mask_ref[...].astype(jnp.int32), x.shape)
        seen = jnp.where(inside, seen, 0) > 0
        lookups = [_no_table, _no_table]
        if tables is not None:
            exp_entries, reciprocals = (ref[...] for ref in table_refs)
            reciprocals = jnp.broadcast_to(reciprocals, (x.shape[0], reciprocals.shape[1]))
            pick = block.one_hot(reciprocals, jax.lax.broadcasted_iota(jnp.int32, reciprocals.shape, 1))
            lookups = [gather(exp_entries), pick]
        out_ref[...] = block.softmax(x, seen, tables, num_keys, *lookups).astype(out_ref.dtype)

    return _call(body, scores, mask, *entries)


def _backward(probabilities: Array, cotangent: Array) -> Array:
    num_keys = probabilities.shape[1]

    def body(probabilities_ref, cotangent_ref, out_ref):
        arrays = [ref[...].astype(jnp.float32) for ref in (probabilities_ref, cotangent_ref)]
        inside = jax.lax.broadcasted_iota(jnp.int32, arrays[0].shape, 1) < num_keys
        arrays = [jnp.where(inside, a, 0.0) for a in arrays]
        out_ref[...] = block.gradient(*arrays).astype(out_ref.dtype)

    return _call(body, probabilities, cotangent)


def _call(body: Any, x: Array, *others: Any) -> Array:
    """A result like x. Whatever has as many rows as x is cut up like it; other arrays are there as a whole."""
    count, num_keys = x.shape
    width = pl.cdiv(num_keys, LANES) * LANES
    blocks = tuned("lut_softmax", "mosaic_tpu", Blocks, width=num_keys, format=x.dtype.name) or heuristic(num_keys)
    rows = blocks.fitted(count)
    tensor = pl.BlockSpec((rows, width), lambda index: (index, 0))

    def spec(a: Any) -> pl.BlockSpec:
        if a.shape == x.shape:
            return tensor
        return pl.BlockSpec((1, pl.cdiv(a.shape[1], LANES) * LANES), lambda index: (0, 0))

    call = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(pl.cdiv(count, rows),),
        in_specs=[spec(a) for a in (x, *others)],
        out_specs=tensor,
        compiler_params=pltpu.CompilerParams(dimension_semantics=(pltpu.PARALLEL,)),
    )
    return jax.custom_batching.sequential_vmap(lambda *arrays: call(*arrays))(x, *map(jnp.asarray, others))


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


def _no_table(table: Any, index: Array) -> Array:
    raise NotImplementedError("a softmax without tables looks nothing up")


_KERNELS = fused.Kernels(_forward, _backward)
