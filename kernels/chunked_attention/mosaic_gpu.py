"""Chunked attention on NVIDIA GPUs from Hopper on: wgmma, and loads of the next blocks while one is computed.

A warpgroup for each block of queries (of keys, for the gradients of keys and values): windows are a few blocks, so
that many small programs on a multiprocessor hide each other's loads better than one large program hides its own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.autotune import tuned
from kernels.chunked_attention import flash
from kernels.chunked_attention.blocks import UNSEEN, Diagonals
from kernels.chunked_attention.online import OnlineSoftmax
from kernels.chunked_attention.rows import seen_keys
from kernels.device import current_device, is_interpreted
from kernels.implementation import Unsupported
from kernels.lut_softmax.mosaic_gpu import gather
from kernels.typing import Array

BLOCK = 64  # of queries and of keys: rows of one wgmma
LARGEST_HEAD_DIM = 128  # beyond, accumulators no longer fit into the registers
_BLACKWELL = 10.0  # the compute capability from which on there is no wgmma
_NEVER = -1e30  # the score of what is not seen
_LEAST = _NEVER / 2  # the least maximum: a row that has seen nothing weighs by 0 what is not seen, whatever its number
_LOG2E = math.log2(math.e)
_VECTORS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # one value for each row, or each column
_ROWS = _VECTORS[0]
# The types of jax say that these are abstract.
_TRANSFORMS: Any = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # pyright: ignore[reportAbstractUsage]
_LINE = plgpu.Layout.WG_STRIDED((2 * BLOCK,), 1)  # a number for each thread
# Of a block with as much on either side; rows begin in different banks, at multiples of 16 bytes.
_SKEWED_WIDTH = 3 * BLOCK + 8
_PARAMS = plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0)  # no sum here goes beyond a warp


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Args:
    steps_ahead: blocks being loaded or computed at a time.
    """

    steps_ahead: int = 2


def candidates(width: int, format: str) -> list[Pipeline]:
    """What tuning chooses among; a block is one wgmma, whatever the problem."""
    return [Pipeline(steps_ahead) for steps_ahead in (2, 3, 4)]


def chunked_attention(query, key, value, relative_bias, key_start, key_end, softmax, chunks=None) -> Array:
    """See `api.chunked_attention`. The ranges of blocks come from the rows; `chunks` is of no use here."""
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        raise Unsupported(
            f"chunked_attention: query is {query.dtype}, and the products of a GPU's kernel take 16 bits: use bfloat16 "
            "or float16 (train.compute), or implementation='xla'"
        )
    if (head_dim := max(query.shape[3], value.shape[3])) > LARGEST_HEAD_DIM:
        raise Unsupported(
            f"chunked_attention: head_dim={head_dim} is more than {LARGEST_HEAD_DIM}: use more heads, or "
            "implementation='xla'"
        )
    if (device := current_device()).capability >= _BLACKWELL:
        raise Unsupported(
            f"chunked_attention: implementation='mosaic_gpu' multiplies as Hopper does (wgmma), which {device.kind!r} "
            "cannot: use implementation='xla'"
        )
    pipeline = tuned("chunked_attention", "mosaic_gpu", Pipeline, width=query.shape[3], format=query.dtype.name)
    kernels = _kernels(pipeline or Pipeline())
    return flash.attention(kernels, query, key, value, relative_bias, key_start, key_end, softmax)


# ------------------------------------------------------------------------ forward


def _forward(
    pipeline: Pipeline, diagonals: Diagonals, online: OnlineSoftmax | None, key_range, query, key, value, biases, *rows
):
    batch, length, heads, head_dim = query.shape
    tables = [] if online is None else [online.tables.exp.table.values, online.tables.reciprocal.table.values]

    def kernel(b, h, i, first, last, whole_first, whole_last, seen_from, seen_to, q_all, k_all, v_all, biases, *refs):
        start, end, *tables, out_all, lse_all, q, row, barrier = refs
        queries = _part(i)
        _fetch(barrier, (q_all.at[b, queries, h], q))

        def step(j, k, v, carry):
            accumulator, maximum, total = carry
            _clean_keys(j, seen_from[b], seen_to[b], v)
            bias = _bias(biases, h, diagonals.index(i, j), 0)
            scores = _product(q, k.transpose((1, 0)), onto=bias) * (_LOG2E if online is None else 1.0)
            whole = (whole_first[b, i] <= j) & (j < whole_last[b, i])
            scores = _masked(scores, whole, j * BLOCK, 1, start.at[b, queries], end.at[b, queries])
            new = jnp.maximum(maximum, jnp.max(scores, axis=1))
            if online is None:
                weights, decay = jnp.exp2(scores - _across(new, 0)), jnp.exp2(maximum - new)
            else:
                seen = scores > _NEVER
                lookups = gather(tables[0], plgpu.Layout.WGMMA), gather(tables[0], _ROWS)
                weights, decay = online.weigh(scores, seen, maximum, new, lambda x: _across(x, 0), *lookups)
            total = total * decay + jnp.sum(weights, axis=1)
            accumulator = _product(weights.astype(v.dtype), v, onto=accumulator * _across(decay, 0, head_dim))
            return accumulator, new, total

        nothing = _zeros(head_dim), _vector(_LEAST, _ROWS), _vector(0.0, _ROWS)
        met = first[b, i], last[b, i]
        arrays = k_all.at[b, :, h], v_all.at[b, :, h]
        accumulator, maximum, total = _over(met, lambda: plgpu.barrier_wait(barrier), step, nothing, pipeline, *arrays)
        if online is None:
            empty = total == 0.0
            total = jnp.where(empty, 1.0, total)
            out = accumulator / _across(total, 0, head_dim)
            lse = jnp.where(empty, 0.0, maximum + jnp.log2(total))
        else:
            reciprocal, scale = online.inverse(total, gather(tables[1], _ROWS))
            out = accumulator * _across(reciprocal, 0, head_dim) * _across(scale, 0, head_dim)
            lse = maximum
        _store((lse, row, lse_all.at[b, h, queries]), (out, q, out_all.at[b, queries, h]))

    sums = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    scratch = [_buffer(query), plgpu.SMEM((BLOCK,), jnp.float32), plgpu.Barrier()]
    call = _call(kernel, query, (jax.ShapeDtypeStruct(query.shape, query.dtype), sums), scratch)
    arrays = query, key, value, biases, *rows
    return call(*key_range, *seen_keys(*rows), *arrays, *map(jnp.asarray, tables))


# ----------------------------------------------------------------------- backward


def _backward(pipeline: Pipeline, diagonals: Diagonals, key_range, query_range, *arrays):
    *arrays, out, cotangent = arrays
    query_gradient, biases_gradient, delta = _query_gradient(pipeline, diagonals, key_range, *arrays, out, cotangent)
    ranges = *query_range, *key_range[2:]
    return query_gradient, *_key_gradient(pipeline, diagonals, ranges, *arrays, delta, cotangent), biases_gradient


def _query_gradient(pipeline: Pipeline, diagonals: Diagonals, key_range, query, key, value, biases, *arrays):
    """Returns the gradients of query and biases, and delta = rowsum(dO O), (batch, heads, queries), for the keys.

    The gradient of the biases is the sum along the diagonals of each block of dS. A program keeps the sums of its block
    of queries; XLA adds them up, in an order that does not depend on timing.
    """
    batch, length, heads, head_dim = query.shape
    parts = -(-(diagonals.last - diagonals.first + 2) // 2)

    def kernel(b, h, i, first, last, whole_first, whole_last, seen_from, seen_to, q_all, k_all, v_all, biases, *refs):
        start, end, lse, out_all, do_all, dq_all, sums_all, delta_all, q, do, (out, skewed), delta, barrier = refs
        queries, own = _part(i), (b, _part(i), h)
        _fetch(barrier, (q_all.at[own], q), (do_all.at[own], do), (out_all.at[own], out))
        sums = sums_all.at[b, h, i]

        @pl.loop(0, parts)
        def _(part):
            sums.at[pl.ds(part * 2 * BLOCK, 2 * BLOCK)][...] = plgpu.layout_cast(jnp.zeros(2 * BLOCK), _LINE)

        rows = _Queries(0, start.at[b, queries], end.at[b, queries], _load(lse.at[b, h, queries], _ROWS), None)

        def arrived():
            plgpu.barrier_wait(barrier)
            _clean(whole_first[b, i] == UNSEEN, rows.see, q, do)
            delta[...] = _row_products(do, out)
            plgpu.commit_smem()  # now every thread has read out, whose memory is that of skewed
            plgpu.copy_smem_to_gmem(delta, delta_all.at[b, h, queries])
            for side in (0, 2):
                _put(_zeros(BLOCK), skewed, side)

        def step(j, k, v, accumulator):
            _clean_keys(j, seen_from[b], seen_to[b], k, v)
            slot, whole = diagonals.index(i, j), (whole_first[b, i] <= j) & (j < whole_last[b, i])
            each = rows._replace(delta=_load(delta, _ROWS))
            _, d_scores = _gradients(q, k, v, do, _bias(biases, h, slot, 0), each, whole, j * BLOCK)
            if not diagonals.constant:
                _add_diagonals(d_scores, skewed, sums.at[pl.ds(slot * BLOCK, 2 * BLOCK)])
            return _product(d_scores.astype(k.dtype), k, onto=accumulator)

        met = first[b, i], last[b, i]
        gradient = _over(met, arrived, step, _zeros(head_dim), pipeline, k_all.at[b, :, h], v_all.at[b, :, h])
        _store((gradient, q, dq_all.at[own]))

    skewed, delta = plgpu.SMEM((BLOCK, _SKEWED_WIDTH), jnp.bfloat16), plgpu.SMEM((BLOCK,), jnp.float32)
    shared = plgpu.RefUnion(_buffer(query), skewed)  # with a place each, fewer programs would fit
    scratch = [_buffer(query), _buffer(query), shared, delta, plgpu.Barrier(num_arrivals=3)]
    shapes = (batch, heads, length // BLOCK, parts * 2 * BLOCK), (batch, heads, length)
    vectors = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = _call(kernel, query, [jax.ShapeDtypeStruct(query.shape, query.dtype), *vectors], scratch)
    gradient, sums, delta = call(*key_range, *seen_keys(*arrays[:2]), query, key, value, biases, *arrays)
    return gradient, jnp.sum(sums, axis=(0, 2))[:, : biases.shape[1]], delta


def _key_gradient(pipeline: Pipeline, diagonals: Diagonals, ranges, query, key, value, biases, *arrays):
    def kernel(b, h, j, first, last, whole_first, whole_last, seen_from, seen_to, q_all, k_all, v_all, biases, *refs):
        start, end, lse, delta, do_all, dk_all, dv_all, k, v, barrier = refs
        keys = _part(j)
        _fetch(barrier, (k_all.at[b, keys, h], k), (v_all.at[b, keys, h], v))

        def arrived():
            plgpu.barrier_wait(barrier)
            _clean_keys(j, seen_from[b], seen_to[b], v)

        def step(i, q, do, carry):
            k_accumulator, v_accumulator = carry
            queries = _part(i)
            vectors = (_load(x.at[b, h, queries], _VECTORS[1]) for x in (lse, delta))
            columns = _Queries(1, start.at[b, queries], end.at[b, queries], *vectors)
            _clean(whole_first[b, i] == UNSEEN, columns.see, q, do)
            bias, whole = _bias(biases, h, diagonals.index(i, j), 1), (whole_first[b, i] <= j) & (j < whole_last[b, i])
            weights, d_scores = _gradients(k, q, do, v, bias, columns, whole, j * BLOCK)
            v_accumulator = _product(weights.astype(do.dtype), do, onto=v_accumulator)
            k_accumulator = _product(d_scores.astype(q.dtype), q, onto=k_accumulator)
            return k_accumulator, v_accumulator

        met, nothing = (first[b, j], last[b, j]), (_zeros(key.shape[3]), _zeros(key.shape[3]))
        k_gradient, v_gradient = _over(met, arrived, step, nothing, pipeline, q_all.at[b, :, h], do_all.at[b, :, h])
        _store((k_gradient, k, dk_all.at[b, keys, h]), (v_gradient, v, dv_all.at[b, keys, h]))

    scratch = [_buffer(key), _buffer(value), plgpu.Barrier(num_arrivals=2)]
    call = _call(kernel, key, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value)], scratch)
    return call(*ranges, *seen_keys(*arrays[:2]), query, key, value, biases, *arrays)


def _add_diagonals(block: Array, skewed: Any, sums: Any) -> None:
    """Adds to sums[BLOCK - 1 - i + j] the elements (i, j) of a block.

    They go through rows in shared memory, zero on both sides, so that what lies on one diagonal is read by one thread:
    row i from column i + 1 on. In bfloat16, whose range is float32's, the rows take half of the memory.
    """
    before = _load(sums, _LINE)
    _put(block, skewed, 1)
    plgpu.commit_smem()
    if is_interpreted():  # where each read is a call of its own
        rows = skewed[...]
        read = [rows[i, i + 1 : i + 1 + 2 * BLOCK] for i in range(BLOCK)]
    else:
        read = [_load(skewed.at[i, pl.ds(i + 1, 2 * BLOCK)], _LINE) for i in range(BLOCK)]
    sums[...] = functools.reduce(jnp.add, (line.astype(jnp.float32) for line in read), before)
    plgpu.commit_smem()


class _Queries(NamedTuple):
    """What there is one of for each query of a block.

    Args:
        axis: of the scores, along which the queries lie.
        start, end: references to their ranges of keys, which are loaded where they are used.
        lse, delta: vectors along the axis, lse to base 2; delta is None where it is not known yet.
    """

    axis: int
    start: Any
    end: Any
    lse: Array
    delta: Any

    def see(self) -> Array:
        """Returns which of them see a key, along the rows of a block."""
        return _load(self.start, _ROWS) < _load(self.end, _ROWS)


def _row_products(a: Any, b: Any) -> Array:
    """Returns the sum of each row of a times b, blocks in shared memory, in float32."""
    parts = (pl.ds(first, BLOCK) for first in range(0, a.shape[1], BLOCK))
    pairs = ([_load(x.at[:, part], plgpu.Layout.WGMMA).astype(jnp.float32) for x in (a, b)] for part in parts)
    return functools.reduce(jnp.add, (jnp.sum(x * y, axis=1) for x, y in pairs))


def _gradients(a, b, c, d, bias, queries: _Queries, whole: Array, keys: Array) -> tuple[Array, Array]:
    """P and dS of a block; dS = P (dP - delta). What is not seen must be finite.

    Args:
        a, b: query and key, or key and query where the queries lie along axis 1.
        c, d: value and cotangent, or cotangent and value: dP = d c^T.
        bias: (BLOCK, BLOCK), transposed likewise.
        whole, keys: see `_masked`.
    """
    axis = queries.axis
    scores = _product(a, b.transpose((1, 0)), onto=bias) * _LOG2E
    scores = scores - _across(queries.lse, axis)
    weights = jnp.exp2(_masked(scores, whole, keys, 1 - axis, queries.start, queries.end))
    return weights, weights * (_product(d, c.transpose((1, 0)), onto=BLOCK) - _across(queries.delta, axis))


# ------------------------------------------------------------------------- common


def _call(kernel: Callable[..., None], like: Array, out_type: Any, scratch: list) -> Callable:
    """Runs `kernel(b, h, i, *references)` for each block i of each head of an array (batch, length, heads, ...)."""
    batch, length, heads, _ = like.shape

    def program(*references):
        kernel(lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("blocks"), *references)

    return plgpu.kernel(
        program,
        out_type=out_type,
        grid=(heads, length // BLOCK, batch),
        grid_names=("heads", "blocks", "batch"),
        scratch_types=scratch,
        compiler_params=_PARAMS,
    )


def _over(
    met: tuple[Array, Array], arrived: Callable, step: Callable, carry: Any, pipeline: Pipeline, *arrays: Any
) -> Any:
    """Returns the carry after `step(j, *blocks, carry)` for each block [first, last) of the arrays, loaded steps ahead.

    `arrived()` is called once, when the first blocks were asked for: it waits for what the program loaded itself.
    """
    first, last = met

    def body(indices, *blocks):
        pl.when(indices[0] == 0)(arrived)
        return step(first + indices[0], *blocks)

    spec = plgpu.BlockSpec((BLOCK, arrays[0].shape[1]), lambda index: (first + index, 0), transforms=_TRANSFORMS)
    carry = plgpu.emit_pipeline(
        body,
        grid=(last - first,),
        in_specs=[spec] * len(arrays),
        max_concurrent_steps=pipeline.steps_ahead,
        init_carry=carry,
    )(*arrays)
    pl.when(first == last)(arrived)  # its buffers are written to next
    return carry


def _fetch(barrier: Any, *copies: tuple[Any, Any]) -> None:
    """Begins to copy from global to shared memory."""
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, barrier)


def _store(*results: tuple[Array, Any, Any]) -> None:
    """Each value through its buffer in shared memory to its place in global memory."""
    for value, buffer, _ in results:
        buffer[...] = value.astype(buffer.dtype)
    plgpu.commit_smem()
    for _, buffer, target in results:
        plgpu.copy_smem_to_gmem(buffer, target)
    plgpu.wait_smem_to_gmem(0)


def _part(block: Any) -> Any:
    """The place of a block, by its number."""
    return pl.ds(block * BLOCK, BLOCK)


def _product(a, b, onto: Array | int) -> Any:
    """onto + a @ b, summed in float32; a in registers or shared memory, b in shared memory.

    Args:
        onto: (BLOCK, columns) in float32, or a number of columns: zeros.
    """
    if is_interpreted():
        return _interpreted_product(a, b, onto)
    if isinstance(onto, int):
        return _new_product(a, b, onto)
    return pl.run_state(lambda sums: plgpu.wgmma(sums, a, b))(plgpu.WGMMAAccumulatorRef.init(onto))


def _new_product(a, b, columns: int) -> Any:
    def multiply(sums):
        plgpu.wgmma(sums, a, b)
        return sums[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((BLOCK, columns), jnp.float32))


def _interpreted_product(a, b, onto: Array | int) -> Any:
    """The interpreter's wgmma takes no operand from registers, and no sums from before."""
    if isinstance(a, jax.Array):

        def stored(buffer):
            buffer[...] = a
            plgpu.commit_smem()
            return _interpreted_product(buffer, b, onto)

        return pl.run_scoped(stored, plgpu.SMEM(a.shape, a.dtype))
    if isinstance(onto, int):
        return _new_product(a, b, onto)
    return onto + _new_product(a, b, onto.shape[1])


def _bias(biases: Any, h: Array, slot: Array, axis: int) -> Array:
    """The bias of a block, its queries along `axis`: 127 numbers, which every thread reads from the row of the head."""
    query, key = (
        plgpu.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), along, layout=plgpu.Layout.WGMMA)
        for along in (axis, 1 - axis)
    )
    index = slot * BLOCK + BLOCK - 1 - query + key
    if is_interpreted():
        return biases[h][index]
    from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
    from jax._src.lib.mlir.dialects import arith, memref, vector
    from jax.experimental.mosaic import gpu as mgpu

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA),
        return_type=plgpu.ShapeDtypeStruct(index.shape, jnp.float32, layout=plgpu.Layout.WGMMA),
    )
    def load(_, row, index):
        registers, of_index = np.empty_like(index.registers), ir.IndexType.get()
        # One address for all that a thread reads: the distance to it is a constant part of each instruction.
        first = arith.index_castui(of_index, vector.extract(index.registers.flat[0], [], [0]))
        for place, _ in np.ndenumerate(registers):
            rows, columns = 8 * place[4], 8 * place[1]
            away = [columns - rows + e if axis == 0 else rows - columns - e for e in (0, 1)]
            found = [memref.load(row, [arith.addi(first, arith.constant(of_index, n))]) for n in away]
            registers[place] = vector.from_elements(ir.VectorType.get((2,), ir.F32Type.get()), found)
        return mgpu.FragmentedArray(_registers=registers, _layout=index.layout, _is_signed=None)

    return load(biases.at[h], index)  # pyright: ignore[reportCallIssue]


def _masked(scores: Array, whole: Array, keys: Array, axis: int, start: Any, end: Any) -> Array:
    """Scores, _NEVER where a query does not see a key. Nothing is compared, or loaded, where a block is seen whole.

    Args:
        whole: whether every query sees every key of the block.
        keys, axis: the number of the first key, and the axis along which keys lie.
        start, end: of each query.
    """

    def mask(scores: Array) -> Array:
        index = keys + plgpu.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), axis, layout=plgpu.Layout.WGMMA)
        first, last = (_across(_load(x, _VECTORS[1 - axis]), 1 - axis) for x in (start, end))
        return jnp.where((first <= index) & (index < last), scores, _NEVER)

    return lax.cond(whole, lambda scores: scores, mask, scores)


def _clean_keys(j: Array, seen_from: Array, seen_to: Array, *blocks: Any) -> None:
    """Zeros where no query of the sequence sees the keys of block j: NaN times a weight of zero is NaN."""
    place = j * BLOCK

    def seen() -> Array:
        keys = place + plgpu.layout_cast(lax.iota(jnp.int32, BLOCK), _ROWS)
        return (seen_from <= keys) & (keys < seen_to)

    _clean((place < seen_from) | (seen_to < place + BLOCK), seen, *blocks)


def _clean(needed: Array, kept: Callable[[], Array], *blocks: Any) -> None:
    """Zeros in the rows of blocks in shared memory that are not kept."""

    @pl.when(needed)
    def _():
        rows = kept()
        for block in blocks:
            for first in range(0, block.shape[1], BLOCK):  # as many columns as registers are free for
                part = block.at[:, pl.ds(first, BLOCK)]
                values = _load(part, plgpu.Layout.WGMMA)
                part[...] = jnp.where(_across(rows, 0), values, jnp.zeros_like(values))
                plgpu.commit_smem()  # part after part, lest registers hold several


def _across(vector: Array, axis: int, size: int = BLOCK) -> Array:
    """A vector along `axis` of a block with `size` columns."""
    return lax.broadcast_in_dim(vector, (BLOCK, size), (axis,))


def _load(ref, layout) -> Array:
    return plgpu.load(ref, layout=layout, optimized=False)


def _put(block: Array, skewed: Any, place: int) -> None:
    """Stores a block in wider rows. Mosaic's own store fails: it wants a width that it could divide into tiles."""
    block = block.astype(skewed.dtype)
    if is_interpreted():
        skewed.at[:, pl.ds(place * BLOCK, BLOCK)][...] = block
        return
    from jax.experimental.mosaic.gpu import utils

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA))
    def store(_, rows, block):
        columns = slice(place * BLOCK, (place + 1) * BLOCK)
        block.store_untiled(utils.memref_slice(rows, (slice(None), columns)), optimized=False)

    store(skewed, block)  # pyright: ignore[reportCallIssue]


def _zeros(columns: int) -> Array:
    return plgpu.layout_cast(jnp.zeros((BLOCK, columns), jnp.float32), plgpu.Layout.WGMMA)


def _vector(value: float, layout) -> Array:
    return plgpu.layout_cast(jnp.full((BLOCK,), value, jnp.float32), layout)


def _buffer(array: Array) -> Any:
    return plgpu.SMEM((BLOCK, array.shape[3]), array.dtype, transforms=_TRANSFORMS)


@functools.cache  # the same functions for the same pipeline: they are part of the key of jit's cache
def _kernels(pipeline: Pipeline) -> flash.Kernels:
    return flash.Kernels(functools.partial(_forward, pipeline), functools.partial(_backward, pipeline), BLOCK)
