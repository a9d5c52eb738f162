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
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.autotune import tuned
from kernels.chunked_attention import flash
from kernels.chunked_attention.blocks import UNSEEN, Diagonals
from kernels.chunked_attention.gpu_biases import (
    LINE,
    SKEWED_WIDTH,
    add_diagonals,
    bias_of,
    put_block,
    put_skewed,
    row_of,
)
from kernels.chunked_attention.gpu_blocks import (
    BLOCK,
    NEVER,
    ROWS,
    VECTORS,
    across,
    clean,
    clean_keys,
    load,
    masked,
    product,
    row_products,
    vector,
    zeros,
)
from kernels.chunked_attention.online import OnlineSoftmax
from kernels.chunked_attention.rows import seen_keys
from kernels.device import current_device
from kernels.implementation import Unsupported
from kernels.lut_softmax.mosaic_gpu import gather
from kernels.typing import Array

LARGEST_HEAD_DIM = 128  # beyond, accumulators no longer fit into the registers
_BLACKWELL = 10.0  # the compute capability from which on there is no wgmma
_LEAST = NEVER / 2  # the least maximum: a row that has seen nothing weighs by 0 what is not seen, whatever its number
_LOG2E = math.log2(math.e)
# The types of jax say that these are abstract.
_TRANSFORMS: Any = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # pyright: ignore[reportAbstractUsage]
_MULTIPLE = _TRANSFORMS[0].tiling[0]  # of lengths: bulk copies fill the rest of a block, but no part of a tile
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


def chunked_attention(query, key, value, positions, key_start, key_end, softmax, chunks=None) -> Array:
    """See `api.chunked_attention`. The ranges of blocks come from the rows; `chunks` limit what positions store."""
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
    return flash.attention(kernels, query, key, value, positions, key_start, key_end, softmax, chunks)


# ------------------------------------------------------------------------ forward


def _forward(
    pipeline: Pipeline, diagonals: Diagonals, online: OnlineSoftmax | None, key_range, query, key, value, biases, *rows
):
    (batch, _, heads, head_dim), (_, length) = query.shape, rows[0].shape
    tables = [] if online is None else [online.tables.exp.table.values, online.tables.reciprocal.table.values]

    def kernel(b, h, i, first, last, whole_first, whole_last, seen_from, seen_to, q_all, k_all, v_all, biases, *refs):
        start, end, *tables, out_all, lse_all, q, row, barrier = refs
        queries = _part(i)
        _fetch(barrier, (q_all.at[b, queries, h], q))

        def step(j, k, v, carry):
            accumulator, maximum, total = carry
            clean_keys(j, seen_from[b], seen_to[b], v)
            bias = bias_of(row_of(biases, b, h, queries), diagonals.index(i, j), 0)
            scores = product(q, k.transpose((1, 0)), onto=bias) * (_LOG2E if online is None else 1.0)
            whole = (whole_first[b, i] <= j) & (j < whole_last[b, i])
            scores = masked(scores, whole, j * BLOCK, 1, start.at[b, queries], end.at[b, queries])
            new = jnp.maximum(maximum, jnp.max(scores, axis=1))
            if online is None:
                weights, decay = jnp.exp2(scores - across(new, 0)), jnp.exp2(maximum - new)
            else:
                seen = scores > NEVER
                lookups = gather(tables[0], plgpu.Layout.WGMMA), gather(tables[0], ROWS)
                weights, decay = online.weigh(scores, seen, maximum, new, lambda x: across(x, 0), *lookups)
            total = total * decay + jnp.sum(weights, axis=1)
            accumulator = product(weights.astype(v.dtype), v, onto=accumulator * across(decay, 0, head_dim))
            return accumulator, new, total

        nothing = zeros(head_dim), vector(_LEAST, ROWS), vector(0.0, ROWS)
        met = first[b, i], last[b, i]
        arrays = k_all.at[b, :, h], v_all.at[b, :, h]
        accumulator, maximum, total = _over(met, lambda: plgpu.barrier_wait(barrier), step, nothing, pipeline, *arrays)
        if online is None:
            empty = total == 0.0
            total = jnp.where(empty, 1.0, total)
            out = accumulator / across(total, 0, head_dim)
            lse = jnp.where(empty, 0.0, maximum + jnp.log2(total))
        else:
            reciprocal, scale = online.inverse(total, gather(tables[1], ROWS))
            out = accumulator * across(reciprocal, 0, head_dim) * across(scale, 0, head_dim)
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

    The gradient of a row of biases for each query is dS, in other places. That of one for all queries is the sum along
    the diagonals of each block of dS. A program keeps the sums of its block of queries; XLA adds them up, in an order
    that does not depend on timing.
    """
    (batch, _, heads, head_dim), (_, length), shared = query.shape, arrays[0].shape, biases.ndim == 2
    parts = -(-(diagonals.slots + 1) // 2)

    def kernel(b, h, i, first, last, whole_first, whole_last, seen_from, seen_to, q_all, k_all, v_all, biases, *refs):
        start, end, lse, out_all, do_all, dq_all, sums_all, delta_all, q, do, (out, skewed), delta, barrier = refs
        queries, own = _part(i), (b, _part(i), h)
        _fetch(barrier, (q_all.at[own], q), (do_all.at[own], do), (out_all.at[own], out))
        met = first[b, i], last[b, i]
        if shared:
            sums = sums_all.at[b, h, i]

            @pl.loop(0, parts)
            def _(part):
                sums.at[pl.ds(part * 2 * BLOCK, 2 * BLOCK)][...] = plgpu.layout_cast(jnp.zeros(2 * BLOCK), LINE)
        else:
            sums = sums_all.at[b, h, queries]
            slots = [diagonals.index(i, j) for j in met]
            for edges in ((0, slots[0] + 1), (slots[1], diagonals.slots + 1)):  # dS covers all that lies between

                @pl.loop(*edges)
                def _(slot):
                    sums.at[:, pl.ds(slot * BLOCK, BLOCK)][...] = zeros(BLOCK).astype(sums.dtype)

        rows = _Queries(0, start.at[b, queries], end.at[b, queries], load(lse.at[b, h, queries], ROWS), None)

        def arrived():
            plgpu.barrier_wait(barrier)
            clean(whole_first[b, i] == UNSEEN, rows.see, q, do)
            delta[...] = row_products(do, out)
            plgpu.commit_smem()  # now every thread has read out, whose memory is that of skewed
            plgpu.copy_smem_to_gmem(delta, delta_all.at[b, h, queries])
            for side in (0, 2) if shared else ():
                put_block(zeros(BLOCK), skewed, side)

        def step(j, k, v, accumulator):
            clean_keys(j, seen_from[b], seen_to[b], k, v)
            slot, whole = diagonals.index(i, j), (whole_first[b, i] <= j) & (j < whole_last[b, i])
            each, bias = rows._replace(delta=load(delta, ROWS)), bias_of(row_of(biases, b, h, queries), slot, 0)
            _, d_scores = _gradients(q, k, v, do, bias, each, whole, j * BLOCK)
            if not shared:
                put_skewed(d_scores, sums, slot)
            elif not diagonals.constant:
                add_diagonals(d_scores, skewed, sums.at[pl.ds(slot * BLOCK, 2 * BLOCK)])
            return product(d_scores.astype(k.dtype), k, onto=accumulator)

        gradient = _over(met, arrived, step, zeros(head_dim), pipeline, k_all.at[b, :, h], v_all.at[b, :, h])
        _store((gradient, q, dq_all.at[own]))

    skewed, delta = plgpu.SMEM((BLOCK, SKEWED_WIDTH), jnp.bfloat16), plgpu.SMEM((BLOCK,), jnp.float32)
    one_place = plgpu.RefUnion(_buffer(query), skewed)  # with a place each, fewer programs would fit
    scratch = [_buffer(query), _buffer(query), one_place, delta, plgpu.Barrier(num_arrivals=3)]
    sums = jax.ShapeDtypeStruct((batch, heads, length // BLOCK, parts * 2 * BLOCK), jnp.float32) if shared else biases
    deltas = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, sums, deltas)]
    call = _call(kernel, query, results, scratch)
    gradient, sums, delta = call(*key_range, *seen_keys(*arrays[:2]), query, key, value, biases, *arrays)
    return gradient, jnp.sum(sums, axis=(0, 2))[:, : biases.shape[1]] if shared else sums, delta


def _key_gradient(pipeline: Pipeline, diagonals: Diagonals, ranges, query, key, value, biases, *arrays):
    def kernel(b, h, j, first, last, whole_first, whole_last, seen_from, seen_to, q_all, k_all, v_all, biases, *refs):
        start, end, lse, delta, do_all, dk_all, dv_all, k, v, barrier = refs
        keys = _part(j)
        _fetch(barrier, (k_all.at[b, keys, h], k), (v_all.at[b, keys, h], v))

        def arrived():
            plgpu.barrier_wait(barrier)
            clean_keys(j, seen_from[b], seen_to[b], v)

        def step(i, q, do, start, end, lse, delta, carry):
            k_accumulator, v_accumulator = carry
            columns = _Queries(1, start, end, *(load(x, VECTORS[1]) for x in (lse, delta)))
            clean(whole_first[b, i] == UNSEEN, columns.see, q, do)
            bias = bias_of(row_of(biases, b, h, _part(i)), diagonals.index(i, j), 1)
            whole = (whole_first[b, i] <= j) & (j < whole_last[b, i])
            weights, d_scores = _gradients(k, q, do, v, bias, columns, whole, j * BLOCK)
            v_accumulator = product(weights.astype(do.dtype), do, onto=v_accumulator)
            k_accumulator = product(d_scores.astype(q.dtype), q, onto=k_accumulator)
            return k_accumulator, v_accumulator

        met, nothing = (first[b, j], last[b, j]), (zeros(key.shape[3]), zeros(key.shape[3]))
        queries = q_all.at[b, :, h], do_all.at[b, :, h], start.at[b], end.at[b], lse.at[b, h], delta.at[b, h]
        k_gradient, v_gradient = _over(met, arrived, step, nothing, pipeline, *queries)
        _store((k_gradient, k, dk_all.at[b, keys, h]), (v_gradient, v, dv_all.at[b, keys, h]))

    scratch = [_buffer(key), _buffer(value), plgpu.Barrier(num_arrivals=2)]
    call = _call(kernel, key, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value)], scratch)
    return call(*ranges, *seen_keys(*arrays[:2]), query, key, value, biases, *arrays)


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
        return load(self.start, ROWS) < load(self.end, ROWS)


def _gradients(a, b, c, d, bias, queries: _Queries, whole: Array, keys: Array) -> tuple[Array, Array]:
    """P and dS of a block; dS = P (dP - delta). What is not seen must be finite.

    Args:
        a, b: query and key, or key and query where the queries lie along axis 1.
        c, d: value and cotangent, or cotangent and value: dP = d c^T.
        bias: (BLOCK, BLOCK), transposed likewise.
        whole, keys: see `masked`.
    """
    axis = queries.axis
    scores = product(a, b.transpose((1, 0)), onto=bias) * _LOG2E
    scores = scores - across(queries.lse, axis)
    weights = jnp.exp2(masked(scores, whole, keys, 1 - axis, queries.start, queries.end))
    return weights, weights * (product(d, c.transpose((1, 0)), onto=BLOCK) - across(queries.delta, axis))


# ------------------------------------------------------------------------- common


def _call(kernel: Callable[..., None], like: Array, out_type: Any, scratch: list) -> Callable:
    """Runs `kernel(b, h, i, *references)` for each block i of each head of an array (batch, length, heads, ...)."""
    batch, length, heads, _ = like.shape  # a last block may reach beyond: see `flash.Kernels.multiple`

    def program(*references):
        kernel(lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("blocks"), *references)

    return plgpu.kernel(
        program,
        out_type=out_type,
        grid=(heads, -(-length // BLOCK), batch),
        grid_names=("heads", "blocks", "batch"),
        scratch_types=scratch,
        compiler_params=_PARAMS,
    )


def _over(
    met: tuple[Array, Array], arrived: Callable, step: Callable, carry: Any, pipeline: Pipeline, *arrays: Any
) -> Any:
    """Returns the carry after `step(j, *blocks, carry)` for each block [first, last) of the arrays, loaded steps ahead.

    Arrays are rows (length, head_dim), or a number for each (length).
    `arrived()` is called once, when the first blocks were asked for: it waits for what the program loaded itself.
    """
    first, last = met

    def body(indices, *blocks):
        pl.when(indices[0] == 0)(arrived)
        return step(first + indices[0], *blocks)

    rows = plgpu.BlockSpec((BLOCK, arrays[0].shape[1]), lambda index: (first + index, 0), transforms=_TRANSFORMS)
    numbers = plgpu.BlockSpec((BLOCK,), lambda index: (first + index,))
    carry = plgpu.emit_pipeline(
        body,
        grid=(last - first,),
        in_specs=[rows if len(array.shape) == 2 else numbers for array in arrays],
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


def _buffer(array: Array) -> Any:
    return plgpu.SMEM((BLOCK, array.shape[3]), array.dtype, transforms=_TRANSFORMS)


@functools.cache  # the same functions for the same pipeline: they are part of the key of jit's cache
def _kernels(pipeline: Pipeline) -> flash.Kernels:
    return flash.Kernels(
        functools.partial(_forward, pipeline), functools.partial(_backward, pipeline), BLOCK, _MULTIPLE
    )
