"""Softmax on NVIDIA GPUs (Mosaic GPU): rows in registers (`kernels.gpu_rows`), tables gathered through the L1 cache."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import gpu_rows
from kernels.broadcast import along
from kernels.device import is_interpreted
from kernels.gpu_rows import Threads, laid, load, unlaid
from kernels.lut_softmax import rowwise
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.rowwise import Mask
from kernels.lut_softmax.table import Lookup
from kernels.typing import Array

_ROWS = gpu_rows.Rows("lut_softmax", "keys of scores", per_lane=64)
_ROWS_WITH_TABLES = _ROWS._replace(per_lane=32)
candidates = _ROWS.candidates


def softmax(scores: Array, mask: Array | None, tables: SoftmaxTables | None) -> Array:
    """See `reference.softmax` and `lut.softmax`. Raises Unsupported for too many keys.

    Those that cannot be spread evenly over threads are filled up, by a copy.
    """
    _rows(tables).filled(scores.shape[-1])
    return rowwise.softmax(_KERNELS, scores, mask, tables)


def _rows(tables: SoftmaxTables | None) -> gpu_rows.Rows:
    return _ROWS if tables is None else _ROWS_WITH_TABLES


def _forward(scores: Array, mask: Mask | None, tables: SoftmaxTables | None) -> Array:
    (count, num_keys), rows = scores.shape, _rows(tables)
    threads, filled = rows.threads(scores), rows.filled(num_keys)[0]
    slab = None
    if mask is not None and mask.heads > 1 and threads.parts == 1:
        # A block has one row of the mask for all its rows, or as many rows of it as of scores.
        slab = mask.heads if mask.rows == 1 else mask.rows
        if slab < threads.tile_rows:
            slab, mask = None, Mask(mask.whole(count), 1, 1)
        else:
            tiles = min(threads.rows, slab) // threads.tile_rows
            threads = dataclasses.replace(threads, rows=tiles * threads.tile_rows)
    same = slab is not None and mask is not None and mask.rows == 1
    entries = [] if tables is None else [tables.exp.table.values, _padded(tables.reciprocal.table.values, threads)]

    def body(block, row, scores_ref, mask_ref, *refs):
        *table_refs, out_ref = refs
        x = block.load(scores_ref, row)
        if mask is None:
            seen = block.index(1) >= 0 if block.span.inside is None else block.span.inside
        else:
            seen = block.columns(mask_ref.at[mask.row(row)]) if same else block.load(mask_ref, mask.row(row))
        if tables is None:
            out = rowwise.exact(x, seen, block.span)
        else:
            exp_ref, reciprocal_ref = table_refs
            reciprocals = along(load(reciprocal_ref, threads.layout.reduce(0)), threads.rows)
            places = plgpu.broadcasted_iota(jnp.int32, reciprocals.shape, 1, layout=threads.layout)
            lookups = gather(exp_ref, threads.layout), rowwise.one_hot(reciprocals, places)
            out = rowwise.from_tables(x, seen, tables, block.span, *lookups)
        out_ref.at[block.place(row)][...] = out.astype(out_ref.dtype)

    scores = laid(scores, threads, filled, threads.rows)
    seen = None if mask is None else laid(mask.seen, threads, filled, 0 if slab else threads.rows)
    others = [seen, *map(jnp.asarray, entries)]
    (out,) = gpu_rows.call(body, threads, [scores], others, width=num_keys, slab=slab)
    return unlaid(out, threads, count, num_keys)


def _backward(probabilities: Array, cotangent: Array) -> Array:
    threads, (count, num_keys) = _ROWS.threads(probabilities), probabilities.shape
    filled = _ROWS.filled(num_keys)[0]

    def body(block, row, probabilities_ref, cotangent_ref, out_ref):
        gradient = rowwise.gradient(block.load(probabilities_ref, row), block.load(cotangent_ref, row), block.span)
        out_ref.at[block.place(row)][...] = gradient.astype(out_ref.dtype)

    tensors = [laid(a, threads, filled, threads.rows) for a in (probabilities, cotangent)]
    (out,) = gpu_rows.call(body, threads, tensors, width=num_keys)
    return unlaid(out, threads, count, num_keys)


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
