"""Softmax on NVIDIA GPUs (Mosaic GPU): rows in registers (`kernels.gpu_rows`), tables gathered through the L1 cache."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import gpu_rows
from kernels.broadcast import along
from kernels.device import is_interpreted
from kernels.gpu_rows import Threads, load
from kernels.lut_softmax import rowwise
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.table import Lookup
from kernels.typing import Array

_ROWS = gpu_rows.Rows("lut_softmax", "keys of scores", per_lane=64)
_PER_LANE_WITH_TABLES = 32
_STEP = 128  # numbers of keys that are not multiples of 16 are filled up to one of this
candidates = _ROWS.candidates


def softmax(scores: Array, mask: Array, tables: SoftmaxTables | None) -> Array:
    """See `reference.softmax` and `lut.softmax`. Raises Unsupported for more keys than a warp's registers hold.

    Scores whose keys are not a multiple of 16 are copied, filled up with masked ones.
    """
    rows = _ROWS if tables is None else _ROWS._replace(per_lane=_PER_LANE_WITH_TABLES)
    num_keys = scores.shape[-1]
    rows.heuristic(num_keys + _fill(num_keys), scores.dtype)
    return rowwise.softmax(_KERNELS, scores, mask, tables)


def _fill(num_keys: int) -> int:
    return -num_keys % _STEP if num_keys % 16 else 0


def _widened(x: Array) -> Array:
    fill = _fill(x.shape[1])
    return jnp.pad(x, ((0, 0), (0, fill))) if fill else x


def _forward(scores: Array, mask: Array, tables: SoftmaxTables | None) -> Array:
    count, num_keys = scores.shape
    scores, mask = _widened(scores), _widened(mask)
    threads = _ROWS.threads(scores)
    layout, shared = threads.layout, mask.shape[0] == 1 < count
    entries = [] if tables is None else [tables.exp.table.values, _padded(tables.reciprocal.table.values, threads)]

    def body(here, scores_ref, mask_ref, shared_ref, *refs):
        *table_refs, out_ref = refs
        x = load(scores_ref.at[here], layout)
        if shared:
            seen = along(load(shared_ref, layout.reduce(0)), threads.rows) > 0
        else:
            seen = load(mask_ref.at[here], layout) > 0
        if tables is None:
            out = rowwise.exact(x, seen)
        else:
            exp_ref, reciprocal_ref = table_refs
            reciprocals = along(load(reciprocal_ref, layout.reduce(0)), threads.rows)
            places = plgpu.broadcasted_iota(jnp.int32, reciprocals.shape, 1, layout=layout)
            lookups = gather(exp_ref, layout), rowwise.one_hot(reciprocals, places)
            out = rowwise.from_tables(x, seen, tables, num_keys, *lookups)
        out_ref.at[here][...] = out.astype(out_ref.dtype)

    tensors, others = ((scores, None), [mask[0]]) if shared else ((scores, mask), [None])
    (out,) = gpu_rows.call(body, threads, tensors, [*others, *map(jnp.asarray, entries)])
    return out[:, :num_keys]


def _backward(probabilities: Array, cotangent: Array) -> Array:
    num_keys = probabilities.shape[1]
    probabilities, cotangent = _widened(probabilities), _widened(cotangent)
    threads = _ROWS.threads(probabilities)

    def body(here, probabilities_ref, cotangent_ref, out_ref):
        arrays = (load(ref.at[here], threads.layout) for ref in (probabilities_ref, cotangent_ref))
        out_ref.at[here][...] = rowwise.gradient(*arrays).astype(out_ref.dtype)

    (out,) = gpu_rows.call(body, threads, (probabilities, cotangent))
    return out[:, :num_keys]


def _padded(values: np.ndarray, threads: Threads) -> np.ndarray:
    """A table that fills the layout of a row."""
    return np.pad(values, (0, -len(values) % (threads.lanes * threads.vector)))


def gather(ref: Any, layout: Any) -> Lookup:
    """A look-up for each element of an array in a layout: every thread loads its own entries.

    The interpreter knows no instructions of the device, and the device no gather of JAX.
    """
    if is_interpreted():
        return lambda table, index: ref[...][index]
    from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
    from jax._src.lib.mlir.dialects import arith, memref, vector
    from jax.experimental.mosaic import gpu as mgpu

    def lookup(table: Any, index: Array) -> Array:
        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), layout),
            return_type=plgpu.ShapeDtypeStruct(index.shape, jnp.float32, layout=layout),
        )
        def load_entries(_, entries, index):
            registers = np.empty_like(index.registers)
            for place, indices in np.ndenumerate(index.registers):
                length = ir.VectorType(indices.type).shape[0]
                numbers = (vector.extract(indices, [], [position]) for position in range(length))
                found = [memref.load(entries, [arith.index_castui(ir.IndexType.get(), number)]) for number in numbers]
                registers[place] = vector.from_elements(ir.VectorType.get((length,), ir.F32Type.get()), found)
            return mgpu.FragmentedArray(_registers=registers, _layout=index.layout, _is_signed=None)

        return load_entries(ref, index)  # pyright: ignore[reportCallIssue]

    return lookup


_KERNELS = rowwise.Kernels(_forward, _backward)
