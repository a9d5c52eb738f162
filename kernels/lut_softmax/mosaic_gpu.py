"""Softmax on NVIDIA GPUs (Mosaic GPU): rows in registers (`kernels.gpu_rows`), tables gathered through the L1 cache."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import gpu_rows
from kernels.autotune import tuned
from kernels.device import is_interpreted
from kernels.gpu_rows import Blocks, at_least, load
from kernels.lut_softmax import block, fused
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.lut_softmax.table import Lookup
from kernels.typing import Array, Bool, Float

PER_LANE, PER_LANE_WITH_TABLES = 64, 32  # elements of a row a thread; with twice as many, registers spill
_STEP = 128  # numbers of keys that are not multiples of 16 are filled up to one of this


def softmax(
    scores: Float[Array, "*batch keys"], mask: Bool[Array, "*#batch keys"], tables: SoftmaxTables | None
) -> Float[Array, "*batch keys"]:
    """See `reference.softmax` and `lut.softmax`. Raises Unsupported for more keys than a warp's registers hold.

    Scores whose keys are not a multiple of 16 are copied, filled up with masked ones.
    """
    num_keys = scores.shape[-1]
    heuristic(num_keys + _fill(num_keys), scores.dtype, PER_LANE if tables is None else PER_LANE_WITH_TABLES)
    return fused.softmax(_KERNELS, scores, mask, tables)


def heuristic(width: int, format: Any, per_lane: int = PER_LANE) -> Blocks:
    """Blocks for a number of keys that was not measured."""
    return gpu_rows.heuristic("softmax", "keys of scores", width, format, per_lane)


def _fill(num_keys: int) -> int:
    return -num_keys % _STEP if num_keys % 16 else 0


def _widened(x: Array, fill: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, fill))) if fill else x


def _blocks(x: Array) -> Blocks:
    count, width = x.shape
    found = tuned("lut_softmax", "mosaic_gpu", Blocks, width=width, format=x.dtype.name)
    return (found or heuristic(width, x.dtype)).fitted(count)


def _forward(scores: Array, mask: Array, tables: SoftmaxTables | None) -> Array:
    count, num_keys = scores.shape
    scores, mask = _widened(scores, _fill(num_keys)), _widened(mask, _fill(num_keys))
    blocks, layout = _blocks(scores), _blocks(scores).layout
    shared = mask.shape[0] == 1 < count
    scores = at_least(scores, blocks.rows)
    mask = mask[0] if shared else at_least(mask, blocks.rows)
    entries = [] if tables is None else [tables.exp.table.values, _padded(tables.reciprocal.table.values, blocks)]

    def body(*refs):
        scores_ref, mask_ref, *table_refs, out_ref = refs
        here = gpu_rows.here(blocks, scores_ref.shape[0])
        x = load(scores_ref.at[here], layout)
        if shared:
            seen = jax.lax.broadcast_in_dim(load(mask_ref, layout.reduce(0)), x.shape, (1,)) > 0
        else:
            seen = load(mask_ref.at[here], layout) > 0
        if tables is None:
            out = block.softmax(x, seen, None, num_keys, _no_table, _no_table)
        else:
            exp_ref, reciprocal_ref = table_refs
            shape = (blocks.rows, *reciprocal_ref.shape)
            reciprocals = jax.lax.broadcast_in_dim(load(reciprocal_ref, layout.reduce(0)), shape, (1,))
            pick = block.one_hot(reciprocals, plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=layout))
            out = block.softmax(x, seen, tables, num_keys, gather(exp_ref, layout), pick)
        out_ref.at[here][...] = out.astype(out_ref.dtype)

    return _call(body, blocks, scores, mask, *entries)[:count, :num_keys]


def _backward(probabilities: Array, cotangent: Array) -> Array:
    count, num_keys = probabilities.shape
    fill = _fill(num_keys)
    probabilities, cotangent = _widened(probabilities, fill), _widened(cotangent, fill)
    blocks = _blocks(probabilities)

    def body(probabilities_ref, cotangent_ref, out_ref):
        here = gpu_rows.here(blocks, out_ref.shape[0])
        arrays = (load(ref.at[here], blocks.layout) for ref in (probabilities_ref, cotangent_ref))
        out_ref.at[here][...] = block.gradient(*arrays).astype(out_ref.dtype)

    arrays = at_least(probabilities, blocks.rows), at_least(cotangent, blocks.rows)
    return _call(body, blocks, *arrays)[:count, :num_keys]


def _call(body: Any, blocks: Blocks, x: Array, *others: Any) -> Array:
    """A result like x."""
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(pl.cdiv(x.shape[0], blocks.rows),),
        grid_names=("block",),
    )
    return kernel(x, *map(jnp.asarray, others))


def _padded(values: np.ndarray, blocks: Blocks) -> np.ndarray:
    """A table that fills the layout of a row."""
    return np.pad(values, (0, -len(values) % (blocks.lanes * blocks.vector)))


def _no_table(table: Any, index: Array) -> Array:
    raise NotImplementedError("a softmax without tables looks nothing up")


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


_KERNELS = fused.Kernels(_forward, _backward)
