"""Chunked attention on NVIDIA GPUs from Hopper on: wgmma, and loads of the next blocks while one is computed.

A warpgroup for each block of queries (of keys, for the gradients of keys and values): windows are a few blocks, so
that many small programs on a multiprocessor hide each other's loads better than one large program hides its own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.autotune import tuned
from kernels.chunked_attention import flash
from kernels.chunked_attention.blocks import Diagonals
from kernels.chunked_attention.online import OnlineSoftmax
from kernels.device import is_interpreted
from kernels.implementation import Unsupported
from kernels.lut_softmax.mosaic_gpu import gather
from kernels.typing import Array, Float, Int

BLOCK = 64  # of queries and of keys: rows of one wgmma
LARGEST_HEAD_DIM = 128  # beyond, accumulators no longer fit into the registers
_NEVER = -1e30  # a score below all others, whose differences are finite
_LOG2E = math.log2(math.e)
_ROWS, _COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # one value for each row, or column
# The types of jax say that these are abstract.
_TRANSFORMS: Any = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # pyright: ignore[reportAbstractUsage]
_PARAMS = plgpu.CompilerParams(approx_math=True)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Args:
    steps_ahead: blocks being loaded or computed at a time.
    splits: programs that share the sum over the batch in the gradient of a tile.
    """

    steps_ahead: int = 2
    splits: int = 32


def candidates() -> list[Blocks]:
    """What tuning chooses among; a block is one wgmma, whatever the problem."""
    return [Blocks(*choice) for choice in ((2, 32), (3, 32), (4, 32), (2, 8), (2, 128))]


def chunked_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    relative_bias: Float[Array, "heads distances"],
    key_start: Int[Array, "batch queries"],
    key_end: Int[Array, "batch queries"],
    softmax: Callable[[Array, Array], Array],
    chunks: tuple[int, int] | None = None,
) -> Float[Array, "batch queries heads head_dim"]:
    """See `api.chunked_attention`. The ranges of blocks come from the rows; `chunks` is of no use here."""
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        raise Unsupported(
            f"chunked_attention: query is {query.dtype}, and the products of a GPU's kernel take 16 bits: use bfloat16 "
            "or float16 (train.compute), or implementation='xla'"
        )
    if query.shape[3] > LARGEST_HEAD_DIM:
        raise Unsupported(
            f"chunked_attention: head_dim={query.shape[3]} is more than {LARGEST_HEAD_DIM}: use more heads, or "
            "implementation='xla'"
        )
    blocks = tuned("chunked_attention", "mosaic_gpu", Blocks, width=query.shape[3], format=query.dtype.name)
    return flash.attention(_backend(blocks or Blocks()), query, key, value, relative_bias, key_start, key_end, softmax)


# ------------------------------------------------------------------------ forward


def _forward(blocks: Blocks, diagonals: Diagonals, online: OnlineSoftmax | None, *arrays: Array):
    query, key, value, tiles, start, end, first, last = arrays
    batch, length, heads, head_dim = query.shape
    tables = [] if online is None else [online.tables.exp.table.values, online.tables.reciprocal.table.values]

    def kernel(q_all, k_all, v_all, tiles, start, end, first, last, *refs):
        *tables, out_all, lse_all, q, row, barrier = refs
        b, h, i = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("blocks")
        queries = pl.ds(i * BLOCK, BLOCK)
        plgpu.copy_gmem_to_smem(q_all.at[b, queries, h], q, barrier)
        begin, steps = first[b, i], last[b, i] - first[b, i]
        row_start, row_end = (_load(x.at[b, queries], _ROWS) for x in (start, end))
        plgpu.barrier_wait(barrier)

        def step(indices, k, v, carry):
            accumulator, maximum, total = carry
            j = begin + indices[0]
            bias = _load(tiles.at[h, diagonals.index(i, j)], plgpu.Layout.WGMMA)
            scores = _product(q, k.transpose((1, 0)), onto=bias) * (_LOG2E if online is None else 1.0)
            seen = _seen(j * BLOCK, 1, row_start, row_end)
            scores = jnp.where(seen, scores, _NEVER)
            new = jnp.maximum(maximum, jnp.max(scores, axis=1))
            if online is None:
                decay = jnp.exp2(maximum - new)
                # A row that has seen nothing yet has the maximum _NEVER, and would weigh what is masked by one.
                weights = jnp.where(scores > _NEVER / 2, jnp.exp2(scores - _spread(new, 0)), 0.0)
            else:
                lookups = gather(tables[0], plgpu.Layout.WGMMA), gather(tables[0], _ROWS)
                weights, decay = online.block(scores, seen, maximum, new, lambda x: _spread(x, 0), *lookups)
            total = total * decay + jnp.sum(weights, axis=1)
            accumulator = _product(weights.astype(v.dtype), v, onto=accumulator * _spread(decay, 0, head_dim))
            return accumulator, new, total

        accumulator, maximum, total = plgpu.emit_pipeline(
            step,
            grid=(steps,),
            in_specs=[_block_spec(head_dim, begin), _block_spec(head_dim, begin)],
            max_concurrent_steps=blocks.steps_ahead,
            init_carry=(_zeros(head_dim), _vector(_NEVER, _ROWS), _vector(0.0, _ROWS)),
        )(k_all.at[b, :, h], v_all.at[b, :, h])
        if online is None:
            empty = total == 0.0
            total = jnp.where(empty, 1.0, total)
            out = accumulator / _spread(total, 0, head_dim)
            row[...] = jnp.where(empty, 0.0, maximum + jnp.log2(total))
        else:
            reciprocal, scale = online.inverse(total, gather(tables[1], _ROWS))
            out = accumulator * _spread(reciprocal, 0, head_dim) * _spread(scale, 0, head_dim)
            row[...] = maximum
        q[...] = out.astype(q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q, out_all.at[b, queries, h])
        plgpu.copy_smem_to_gmem(row, lse_all.at[b, h, queries])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        grid=(heads, length // BLOCK, batch),
        grid_names=("heads", "blocks", "batch"),
        scratch_types=[_buffer(query), plgpu.SMEM((BLOCK,), jnp.float32), plgpu.Barrier()],
        compiler_params=_PARAMS,
    )(query, key, value, tiles, start, end, first, last, *map(jnp.asarray, tables))


# ----------------------------------------------------------------------- backward


def _backward(
    blocks: Blocks,
    diagonals: Diagonals,
    query,
    key,
    value,
    tiles,
    start,
    end,
    key_range,
    query_range,
    lse,
    delta,
    cotangent,
):
    arrays = query, key, value, cotangent, tiles, start, end, lse, delta
    query_gradient = _query_gradient(blocks, diagonals, key_range, *arrays)
    key_gradient, value_gradient = _key_gradient(blocks, diagonals, query_range, *arrays)
    tiles_gradient = _tiles_gradient(blocks, diagonals, key_range, *arrays)
    return query_gradient, key_gradient, value_gradient, tiles_gradient


def _query_gradient(
    blocks: Blocks, diagonals: Diagonals, ranges, query, key, value, cotangent, tiles, start, end, lse, delta
):
    batch, length, heads, head_dim = query.shape

    def kernel(first, last, q_all, k_all, v_all, do_all, tiles, start, end, lse, delta, dq_all, q, do, barrier):
        b, h, i = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("blocks")
        queries = pl.ds(i * BLOCK, BLOCK)
        plgpu.copy_gmem_to_smem(q_all.at[b, queries, h], q, barrier)
        plgpu.copy_gmem_to_smem(do_all.at[b, queries, h], do, barrier)
        begin, steps = first[b, i], last[b, i] - first[b, i]
        rows = [_load(x.at[b, queries], _ROWS) for x in (start, end)]
        rows += [_load(x.at[b, h, queries], _ROWS) for x in (lse, delta)]
        plgpu.barrier_wait(barrier)

        def step(indices, k, v, accumulator):
            j = begin + indices[0]
            tile = tiles.at[h, diagonals.index(i, j)]
            _, d_scores = _gradients(q, k, v, do, tile, rows, keys=j * BLOCK)
            return _product(d_scores.astype(k.dtype), k, onto=accumulator)

        accumulator = plgpu.emit_pipeline(
            step,
            grid=(steps,),
            in_specs=[_block_spec(head_dim, begin), _block_spec(head_dim, begin)],
            max_concurrent_steps=blocks.steps_ahead,
            init_carry=_zeros(head_dim),
        )(k_all.at[b, :, h], v_all.at[b, :, h])
        q[...] = accumulator.astype(q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q, dq_all.at[b, queries, h])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(query.shape, query.dtype),
        grid=(heads, length // BLOCK, batch),
        grid_names=("heads", "blocks", "batch"),
        scratch_types=[_buffer(query), _buffer(query), plgpu.Barrier(num_arrivals=2)],
        compiler_params=_PARAMS,
    )(*ranges, query, key, value, cotangent, tiles, start, end, lse, delta)


def _key_gradient(
    blocks: Blocks, diagonals: Diagonals, ranges, query, key, value, cotangent, tiles, start, end, lse, delta
):
    batch, length, heads, head_dim = key.shape

    def kernel(first, last, q_all, k_all, v_all, do_all, tiles, start, end, lse, delta, dk_all, dv_all, k, v, barrier):
        b, h, j = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("blocks")
        keys = pl.ds(j * BLOCK, BLOCK)
        plgpu.copy_gmem_to_smem(k_all.at[b, keys, h], k, barrier)
        plgpu.copy_gmem_to_smem(v_all.at[b, keys, h], v, barrier)
        begin, steps = first[b, j], last[b, j] - first[b, j]
        plgpu.barrier_wait(barrier)

        def step(indices, q, do, carry):
            k_accumulator, v_accumulator = carry
            i = begin + indices[0]
            queries = pl.ds(i * BLOCK, BLOCK)
            columns = [_load(x.at[b, queries], _COLUMNS) for x in (start, end)]
            columns += [_load(x.at[b, h, queries], _COLUMNS) for x in (lse, delta)]
            tile = tiles.at[h, diagonals.index(i, j)]
            weights, d_scores = _gradients(k, q, do, v, tile, columns, keys=j * BLOCK, transposed=True)
            v_accumulator = _product(weights.astype(do.dtype), do, onto=v_accumulator)
            k_accumulator = _product(d_scores.astype(q.dtype), q, onto=k_accumulator)
            return k_accumulator, v_accumulator

        k_gradient, v_gradient = plgpu.emit_pipeline(
            step,
            grid=(steps,),
            in_specs=[_block_spec(head_dim, begin), _block_spec(head_dim, begin)],
            max_concurrent_steps=blocks.steps_ahead,
            init_carry=(_zeros(head_dim), _zeros(head_dim)),
        )(q_all.at[b, :, h], do_all.at[b, :, h])
        k[...] = k_gradient.astype(k.dtype)
        v[...] = v_gradient.astype(v.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(k, dk_all.at[b, keys, h])
        plgpu.copy_smem_to_gmem(v, dv_all.at[b, keys, h])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=(jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)),
        grid=(heads, length // BLOCK, batch),
        grid_names=("heads", "blocks", "batch"),
        scratch_types=[_buffer(key), _buffer(value), plgpu.Barrier(num_arrivals=2)],
        compiler_params=_PARAMS,
    )(*ranges, query, key, value, cotangent, tiles.swapaxes(2, 3), start, end, lse, delta)


def _tiles_gradient(
    blocks: Blocks, diagonals: Diagonals, ranges, query, key, value, cotangent, tiles, start, end, lse, delta
):
    """Sums of dS along each diagonal of blocks.

    Programs share the query blocks; XLA adds their parts up, in an order that does not depend on timing.
    """
    batch, length, heads, _ = query.shape
    num_blocks, items = length // BLOCK, batch * length // BLOCK
    splits = min(blocks.splits, items)

    def kernel(
        first, last, q_all, k_all, v_all, do_all, tiles, start, end, lse, delta, out, q, k, v, do, tile, barrier
    ):
        h, t, split = lax.axis_index("heads"), lax.axis_index("tiles"), lax.axis_index("splits")

        def item(index, total):
            position = split + index * splits
            b, i = position // num_blocks, position % num_blocks
            queries = pl.ds(i * BLOCK, BLOCK)
            # Block j = i - (first diagonal + t); the outermost tiles stand for all diagonals beyond them as well.
            j = i - diagonals.first - t
            begin = jnp.maximum(first[b, i], jnp.where(t == tiles.shape[1] - 1, 0, j))
            stop = jnp.minimum(last[b, i], jnp.where(t == 0, key.shape[1] // BLOCK, j + 1))

            def step(j, total):
                keys = pl.ds(j * BLOCK, BLOCK)
                for source, target in ((q_all, q), (do_all, do)):
                    plgpu.copy_gmem_to_smem(source.at[b, queries, h], target, barrier)
                for source, target in ((k_all, k), (v_all, v)):
                    plgpu.copy_gmem_to_smem(source.at[b, keys, h], target, barrier)
                rows = [_load(x.at[b, queries], _ROWS) for x in (start, end)]
                rows += [_load(x.at[b, h, queries], _ROWS) for x in (lse, delta)]
                plgpu.barrier_wait(barrier)
                return total + _gradients(q, k, v, do, tiles.at[h, t], rows, keys=j * BLOCK)[1]

            return lax.fori_loop(begin, stop, step, total)

        tile[...] = lax.fori_loop(0, (items - split + splits - 1) // splits, item, _zeros(BLOCK))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(tile, out.at[split, h, t])
        plgpu.wait_smem_to_gmem(0)

    parts = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((splits, *tiles.shape), jnp.float32),
        grid=(heads, tiles.shape[1], splits),
        grid_names=("heads", "tiles", "splits"),
        scratch_types=[
            *[_buffer(x) for x in (query, key, value, cotangent)],
            plgpu.SMEM((BLOCK, BLOCK), jnp.float32),
            plgpu.Barrier(num_arrivals=4),
        ],
        compiler_params=_PARAMS,
    )(*ranges, query, key, value, cotangent, tiles, start, end, lse, delta)
    return jnp.sum(parts, axis=0)


def _gradients(a, b, c, d, tile, vectors: list[Array], *, keys, transposed: bool = False) -> tuple[Array, Array]:
    """P and dS of a block; dS = P (dP - delta).

    Args:
        a, b: query and key, or key and query if `transposed`.
        c, d: value and cotangent, or cotangent and value: dP = d c^T.
        tile: the bias, transposed likewise.
        vectors: start, end, lse (to base 2) and delta of the queries, in the layout of rows or of columns.
    """
    axis = 1 if transposed else 0
    start, end, lse, delta = vectors
    scores = _product(a, b.transpose((1, 0)), onto=_load(tile, plgpu.Layout.WGMMA)) * _LOG2E
    seen = _seen(keys, 1 - axis, start, end)
    weights = jnp.exp2(jnp.where(seen, scores - _spread(lse, axis), _NEVER))
    return weights, weights * (_product(d, c.transpose((1, 0)), onto=BLOCK) - _spread(delta, axis))


# ------------------------------------------------------------------------- common


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


def _seen(keys: Array, axis: int, start: Array, end: Array) -> Array:
    """(BLOCK, BLOCK): which of the keys, along `axis`, from number `keys` on, the queries see."""
    index = keys + plgpu.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), axis, layout=plgpu.Layout.WGMMA)
    return (_spread(start, 1 - axis) <= index) & (index < _spread(end, 1 - axis))


def _spread(vector: Array, axis: int, size: int = BLOCK) -> Array:
    """A vector along `axis` of a block with `size` columns."""
    return lax.broadcast_in_dim(vector, (BLOCK, size), (axis,))


def _load(ref, layout) -> Array:
    return plgpu.load(ref, layout=layout, optimized=False)


def _zeros(columns: int) -> Array:
    return plgpu.layout_cast(jnp.zeros((BLOCK, columns), jnp.float32), plgpu.Layout.WGMMA)


def _vector(value: float, layout) -> Array:
    return plgpu.layout_cast(jnp.full((BLOCK,), value, jnp.float32), layout)


def _buffer(array: Array) -> Any:
    return plgpu.SMEM((BLOCK, array.shape[3]), array.dtype, transforms=_TRANSFORMS)


def _block_spec(head_dim: int, begin: Array) -> Any:
    return plgpu.BlockSpec((BLOCK, head_dim), lambda step: (begin + step, 0), transforms=_TRANSFORMS)


@functools.cache  # the same functions for the same blocks: they are part of the key of jit's cache
def _backend(blocks: Blocks) -> flash.Backend:
    return flash.Backend(functools.partial(_forward, blocks), functools.partial(_backward, blocks), BLOCK)
