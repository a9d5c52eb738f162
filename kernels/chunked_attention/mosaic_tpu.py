"""Chunked attention on TPUs: one pass over the blocks of keys that a block of queries sees, and its gradients.

Scores are kept transposed, keys x queries: what there is one of for each query (its range, its maximum, its sum) is
then a vector along the lanes. The grid's last axis is as long as the longest range of blocks; a shorter one asks for
its last block again, which is not loaded again, and does nothing with it.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.autotune import tuned
from kernels.chunked_attention import flash
from kernels.chunked_attention.blocks import Diagonals
from kernels.chunked_attention.online import OnlineSoftmax
from kernels.implementation import Unsupported
from kernels.lut_softmax.mosaic_tpu import gather, lanes
from kernels.lut_softmax.table import Lookup
from kernels.typing import Array, Float, Int

LARGEST_TILES = 8 * 2**20  # bytes of VMEM that the bias of one head may take, twice in the backward pass
_NEVER = -1e30  # a score below all others, whose differences are finite


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Args:
    block: queries, and keys, of a block; multiples of 128, for Mosaic cannot prove smaller slices of lanes aligned.
    """

    block: int = 128


def candidates() -> list[Blocks]:
    """What tuning chooses among, whatever the problem."""
    return [Blocks(128), Blocks(256)]


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
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise Unsupported(
            f"chunked_attention: query is {query.dtype}, which a TPU kernel cannot load: use float32 or bfloat16, or "
            "implementation='xla'"
        )
    blocks = tuned("chunked_attention", "mosaic_tpu", Blocks, width=query.shape[3], format=query.dtype.name) or Blocks()
    if (size := 4 * 2 * blocks.block * relative_bias.shape[1]) > LARGEST_TILES:
        raise Unsupported(
            f"chunked_attention: relative_bias has {relative_bias.shape[1]} distances, about {size / 2**20:.0f} MiB of "
            "VMEM a head: use fewer, or implementation='xla'"
        )
    return flash.attention(_backend(blocks.block), query, key, value, relative_bias, key_start, key_end, softmax)


# ------------------------------------------------------------------------ forward


def _forward(diagonals: Diagonals, online: OnlineSoftmax | None, query, key, value, tiles, start, end, first, last):
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    tiles = tiles.swapaxes(2, 3)
    (batch, heads, length, head_dim), block = query.shape, diagonals.block
    tables = [] if online is None else [online.tables.exp.table.values, online.tables.reciprocal.table.values]
    tables = [jnp.asarray(lanes(table)) for table in tables]

    def kernel(first, last, q, k, v, tile, start, end, *refs):
        *tables, out, lse, total, maximum, accumulator = refs
        b, i, step = pl.program_id(1), pl.program_id(2), pl.program_id(3)
        j = first[b, i] + step

        @pl.when(step == 0)
        def _():
            total[...] = jnp.zeros_like(total)
            maximum[...] = jnp.full_like(maximum, _NEVER)
            accumulator[...] = jnp.zeros_like(accumulator)

        @pl.when(j < last[b, i])
        def _():
            seen = _seen(j, start[0], end[0])
            scores = jnp.where(seen, _scores(k, q) + tile[0, diagonals.index(i, j)], _NEVER)
            old, new = maximum[...], jnp.maximum(maximum[...], jnp.max(scores, axis=0, keepdims=True))
            if online is None:
                weights, decay = jnp.where(seen, jnp.exp(scores - new), 0.0), jnp.exp(old - new)
            else:
                lookups = gather(tables[0][...]), _row_gather(tables[0][...])
                weights, decay = online.block(
                    scores, seen, old, new, lambda x: jnp.broadcast_to(x, seen.shape), *lookups
                )
            maximum[...] = new
            total[...] = decay * total[...] + jnp.sum(weights, axis=0, keepdims=True)
            accumulator[...] = decay * accumulator[...] + _dot(v[0, 0], weights.astype(v.dtype), (0, 0))

        @pl.when(step == pl.num_programs(3) - 1)
        def _():
            if online is None:
                empty = total[...] == 0.0
                sums = jnp.where(empty, 1.0, total[...])
                out[0, 0] = (accumulator[...] / sums).astype(out.dtype)
                lse[0, 0] = jnp.where(empty, 0.0, maximum[...] + jnp.log(sums))
            else:
                reciprocal, scale = online.inverse(total[...], _row_gather(tables[1][...]))
                out[0, 0] = (accumulator[...] * reciprocal * scale).astype(out.dtype)
                lse[0, 0] = maximum[...]

    queries, keys, columns, rows = _index_maps(_own, _met)
    out, lse = pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct((batch, heads, head_dim, length), query.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads, batch, length // block, _longest(first, last)),
            in_specs=[
                pl.BlockSpec((1, 1, block, head_dim), queries),
                pl.BlockSpec((1, 1, block, head_dim), keys),
                pl.BlockSpec((1, 1, block, head_dim), keys),
                pl.BlockSpec((1, *tiles.shape[1:]), lambda h, *_: (h, 0, 0, 0)),
                pl.BlockSpec((1, 1, block), rows),
                pl.BlockSpec((1, 1, block), rows),
                *(pl.BlockSpec(table.shape, lambda *_: (0, 0)) for table in tables),
            ],
            out_specs=(
                pl.BlockSpec((1, 1, head_dim, block), columns),
                pl.BlockSpec((1, 1, 1, block), columns),
            ),
            scratch_shapes=[
                pltpu.VMEM((1, block), jnp.float32),
                pltpu.VMEM((1, block), jnp.float32),
                pltpu.VMEM((head_dim, block), jnp.float32),
            ],
        ),
        compiler_params=_PARAMS,
        name="chunked_attention",
    )(first, last, query, key, value, tiles, start[:, None], end[:, None], *tables)
    return out.transpose(0, 3, 1, 2), lse[:, :, 0]


# ----------------------------------------------------------------------- backward


def _backward(
    diagonals: Diagonals, query, key, value, tiles, start, end, key_range, query_range, lse, delta, cotangent
):
    query, key, value, cotangent = (x.swapaxes(1, 2) for x in (query, key, value, cotangent))
    rows = start[:, None], end[:, None], lse[:, :, None], delta[:, :, None]
    tiles = tiles.swapaxes(2, 3)
    query_gradient, tiles_gradient = _query_gradient(diagonals, key_range, query, key, value, cotangent, tiles, *rows)
    key_gradient, value_gradient = _key_gradient(diagonals, query_range, query, key, value, cotangent, tiles, *rows)
    return (
        query_gradient.transpose(0, 3, 1, 2),
        key_gradient.swapaxes(1, 2),
        value_gradient.swapaxes(1, 2),
        tiles_gradient.swapaxes(2, 3),
    )


def _query_gradient(diagonals: Diagonals, blocks, query, key, value, cotangent, tiles, start, end, lse, delta):
    (batch, heads, length, head_dim), block = query.shape, diagonals.block

    def kernel(first, last, q, k, v, do, tile, start, end, lse, delta, dq, d_tile, accumulator):
        b, i, step = pl.program_id(1), pl.program_id(2), pl.program_id(3)
        j = first[b, i] + step

        @pl.when(step == 0)
        def _():
            accumulator[...] = jnp.zeros_like(accumulator)

        @pl.when((b == 0) & (i == 0) & (step == 0))
        def _():
            d_tile[...] = jnp.zeros_like(d_tile)

        @pl.when(j < last[b, i])
        def _():
            diagonal = diagonals.index(i, j)
            _, d_scores = _gradients(j, diagonal, q, k, v, do, tile, start, end, lse, delta)
            d_tile[0, diagonal] += d_scores
            accumulator[...] += _dot(k[0, 0], d_scores.astype(k.dtype), (0, 0))

        @pl.when(step == pl.num_programs(3) - 1)
        def _():
            dq[0, 0] = accumulator[...].astype(dq.dtype)

    queries, keys, columns, rows = _index_maps(_own, _met)
    return pl.pallas_call(
        kernel,
        out_shape=(
            jax.ShapeDtypeStruct((batch, heads, head_dim, length), query.dtype),
            jax.ShapeDtypeStruct(tiles.shape, jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads, batch, length // block, _longest(*blocks)),
            in_specs=_backward_specs(queries, keys, columns, rows, (block, head_dim), tiles.shape),
            out_specs=(
                pl.BlockSpec((1, 1, head_dim, block), columns),
                pl.BlockSpec((1, *tiles.shape[1:]), lambda h, *_: (h, 0, 0, 0)),
            ),
            scratch_shapes=[pltpu.VMEM((head_dim, block), jnp.float32)],
        ),
        compiler_params=_PARAMS,
        name="chunked_attention_query_gradient",
    )(*blocks, query, key, value, cotangent, tiles, start, end, lse, delta)


def _key_gradient(diagonals: Diagonals, blocks, query, key, value, cotangent, tiles, start, end, lse, delta):
    (batch, heads, length, head_dim), block = key.shape, diagonals.block

    def kernel(first, last, q, k, v, do, tile, start, end, lse, delta, dk, dv, k_accumulator, v_accumulator):
        b, j, step = pl.program_id(1), pl.program_id(2), pl.program_id(3)
        i = first[b, j] + step

        @pl.when(step == 0)
        def _():
            k_accumulator[...] = jnp.zeros_like(k_accumulator)
            v_accumulator[...] = jnp.zeros_like(v_accumulator)

        @pl.when(i < last[b, j])
        def _():
            weights, d_scores = _gradients(j, diagonals.index(i, j), q, k, v, do, tile, start, end, lse, delta)
            v_accumulator[...] += _dot(weights.astype(do.dtype), do[0, 0], (1, 0))
            k_accumulator[...] += _dot(d_scores.astype(q.dtype), q[0, 0], (1, 0))

        @pl.when(step == pl.num_programs(3) - 1)
        def _():
            dk[0, 0] = k_accumulator[...].astype(dk.dtype)
            dv[0, 0] = v_accumulator[...].astype(dv.dtype)

    queries, keys, columns, rows = _index_maps(_met, _own)
    return pl.pallas_call(
        kernel,
        out_shape=(jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads, batch, length // block, _longest(*blocks)),
            in_specs=_backward_specs(queries, keys, columns, rows, (block, head_dim), tiles.shape),
            out_specs=(pl.BlockSpec((1, 1, block, head_dim), keys),) * 2,
            scratch_shapes=[pltpu.VMEM((block, head_dim), jnp.float32)] * 2,
        ),
        compiler_params=_PARAMS,
        name="chunked_attention_key_gradient",
    )(*blocks, query, key, value, cotangent, tiles, start, end, lse, delta)


def _backward_specs(queries, keys, columns, rows, shape: tuple[int, int], tiles: tuple[int, ...]) -> list[pl.BlockSpec]:
    """Of query, key, value, cotangent, tiles, start, end, lse and delta; a block has the shape (block, head_dim)."""
    block, head_dim = shape
    return [
        pl.BlockSpec((1, 1, block, head_dim), queries),
        pl.BlockSpec((1, 1, block, head_dim), keys),
        pl.BlockSpec((1, 1, block, head_dim), keys),
        pl.BlockSpec((1, 1, block, head_dim), queries),
        pl.BlockSpec((1, *tiles[1:]), lambda h, *_: (h, 0, 0, 0)),
        pl.BlockSpec((1, 1, block), rows),
        pl.BlockSpec((1, 1, block), rows),
        pl.BlockSpec((1, 1, 1, block), columns),
        pl.BlockSpec((1, 1, 1, block), columns),
    ]


def _gradients(j, diagonal, q, k, v, do, tile, start, end, lse, delta) -> tuple[Array, Array]:
    """P and dS of a block, transposed."""
    scores = _scores(k, q) + tile[0, diagonal]
    # Masked first: exp of a score that no query sees could be infinite.
    weights = jnp.exp(jnp.where(_seen(j, start[0], end[0]), scores - lse[0, 0], _NEVER))
    return weights, weights * (_scores(v, do) - delta[0, 0])


# ------------------------------------------------------------------------- common


def _own(b, i, step, first, last):
    """The block that a program of the grid (heads, batch, blocks, steps) works for."""
    return i


def _met(b, i, step, first, last):
    """The block of the other side that it meets in a step."""
    return _block(first[b, i], last[b, i], step)


def _index_maps(queries: Callable, keys: Callable) -> tuple[Callable, Callable, Callable, Callable]:
    """Of blocks of queries, of keys, of one number for each head and query, and of one for each query.

    Args:
        queries, keys: `_own` and `_met`, or the other way round.
    """
    return (
        lambda h, b, *at: (b, h, queries(b, *at), 0),
        lambda h, b, *at: (b, h, keys(b, *at), 0),
        lambda h, b, *at: (b, h, 0, queries(b, *at)),
        lambda h, b, *at: (b, 0, queries(b, *at)),
    )


def _longest(first: Array, last: Array) -> Array:
    """Steps of the grid's last axis; at least one, for the outputs are written in the last."""
    return jnp.maximum(jnp.max(last - first), 1)


def _block(first: Array, last: Array, step: Array) -> Array:
    """The block of a step; beyond the range its last one."""
    return jnp.maximum(jnp.minimum(first + step, last - 1), 0)


def _seen(j: Array, start: Array, end: Array) -> Array:
    """(keys, queries): which of the keys of block j the queries, (1, queries), see."""
    block = start.shape[1]
    keys = j * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), 0)
    return (start <= keys) & (keys < end)


def _scores(a, b) -> Array:
    """(keys, queries) of a's rows with b's."""
    return _dot(a[0, 0], b[0, 0], (1, 1))


def _row_gather(entries: Float[Array, "1 entries"]) -> Lookup:
    """A look-up for each query: gathers work on whole registers, of eight rows."""
    every = gather(entries)
    return lambda table, index: every(table, jnp.broadcast_to(index, (8, index.shape[1])))[:1]


def _dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"))


@functools.cache  # one for each size: backends are part of the key of jit's cache
def _backend(block: int) -> flash.Backend:
    return flash.Backend(_forward, _backward, block)
