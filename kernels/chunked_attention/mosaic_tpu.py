"""Chunked attention on TPUs: one pass over the blocks of keys that a block of queries sees, and its gradients.

Scores are kept transposed, keys x queries: what there is one of for each query (its range, its maximum, its sum) is
then a vector along the lanes. The grid's last axis is as long as the longest range of blocks; a shorter one asks for
its last block again, which is not loaded again, and does nothing with it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.autotune import tuned
from kernels.chunked_attention import flash
from kernels.chunked_attention.blocks import Diagonals
from kernels.chunked_attention.online import OnlineSoftmax
from kernels.guard import shaped
from kernels.implementation import Unsupported
from kernels.lut_softmax.mosaic_tpu import gather, lanes
from kernels.lut_softmax.table import Lookup
from kernels.typing import Array, Float

LARGEST_TILES = 8 * 2**20  # bytes of VMEM that the bias of one head may take, twice in the backward pass
_NEVER = -1e30  # a score below all others, whose differences are finite


@dataclasses.dataclass(frozen=True)
class BlockSize:
    """Args:
    block: queries, and keys, of a block; multiples of 128, for Mosaic cannot prove smaller slices of lanes aligned.
    """

    block: int = 128


def candidates(width: int, format: str) -> list[BlockSize]:
    """What tuning chooses among, whatever the problem."""
    return [BlockSize(128), BlockSize(256)]


def chunked_attention(query, key, value, relative_bias, key_start, key_end, softmax, chunks=None) -> Array:
    """See `api.chunked_attention`. The ranges of blocks come from the rows; `chunks` is of no use here."""
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise Unsupported(
            f"chunked_attention: query is {query.dtype}, which a TPU kernel cannot load: use float32 or bfloat16, or "
            "implementation='xla'"
        )
    width, distances = query.shape[3], relative_bias.shape[1]
    size = tuned("chunked_attention", "mosaic_tpu", BlockSize, width=width, format=query.dtype.name) or BlockSize()
    if (tiles_bytes := 4 * 2 * size.block * distances) > LARGEST_TILES:
        raise Unsupported(
            f"chunked_attention: relative_bias has {distances} distances, about {tiles_bytes / 2**20:.0f} MiB of VMEM "
            "a head: use fewer, or implementation='xla'"
        )
    return flash.attention(_kernels(size.block), query, key, value, relative_bias, key_start, key_end, softmax)


# ------------------------------------------------------------------------ forward


def _forward(diagonals: Diagonals, online: OnlineSoftmax | None, key_range, query, key, value, biases, start, end):
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    tiles = diagonals.tiles(biases).swapaxes(2, 3)
    (batch, heads, length, head_dim), block = query.shape, diagonals.block
    tables = [] if online is None else [online.tables.exp.table.values, online.tables.reciprocal.table.values]
    tables = [jnp.asarray(lanes(table)) for table in tables]

    def kernel(i, j, meet, done, q, k, v, tile, start, end, *refs):
        *tables, out, lse, total, maximum, accumulator = refs

        @pl.when(meet)
        def _():
            seen = _seen(j, start[0], end[0])
            scores = jnp.where(seen, _scores(k, q) + tile[0, diagonals.index(i, j)], _NEVER)
            old, new = maximum[...], jnp.maximum(maximum[...], jnp.max(scores, axis=0, keepdims=True))
            if online is None:
                weights, decay = jnp.where(seen, jnp.exp(scores - new), 0.0), jnp.exp(old - new)
            else:
                lookups = gather(tables[0][...]), _row_gather(tables[0][...])
                weights, decay = online.weigh(
                    scores, seen, old, new, lambda x: jnp.broadcast_to(x, seen.shape), *lookups
                )
            maximum[...] = new
            total[...] = decay * total[...] + jnp.sum(weights, axis=0, keepdims=True)
            accumulator[...] = decay * accumulator[...] + _dot(v[0, 0], weights.astype(v.dtype), (0, 0))

        @pl.when(done)
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

    specs = _Specs(tiles.shape, block, head_dim, queries=_own, keys=_met)
    inputs = specs.inputs + [pl.BlockSpec(table.shape, lambda *_: (0, 0)) for table in tables]
    results = [
        (shaped((batch, heads, head_dim, length), query.dtype, query), specs.columns(head_dim)),
        (shaped((batch, heads, 1, length), jnp.float32, query), specs.columns(1)),
    ]
    scratch = [((1, block), 0.0), ((1, block), _NEVER), ((head_dim, block), 0.0)]
    call = _call("chunked_attention", kernel, key_range, inputs, results, scratch)
    out, lse = call(query, key, value, tiles, start[:, None], end[:, None], *tables)
    return out.transpose(0, 3, 1, 2), lse[:, :, 0]


# ----------------------------------------------------------------------- backward


def _backward(
    diagonals: Diagonals, key_range, query_range, query, key, value, biases, start, end, lse, delta, cotangent
):
    query, key, value, cotangent = (x.swapaxes(1, 2) for x in (query, key, value, cotangent))
    rows = start[:, None], end[:, None], lse[:, :, None], delta[:, :, None]
    tiles, untiled = jax.vjp(lambda biases: diagonals.tiles(biases).swapaxes(2, 3), biases)
    arrays = query, key, value, tiles, *rows, cotangent
    query_gradient, tiles_gradient = _query_gradient(diagonals, key_range, *arrays)
    key_gradient, value_gradient = _key_gradient(diagonals, query_range, *arrays)
    return (
        query_gradient.transpose(0, 3, 1, 2),
        key_gradient.swapaxes(1, 2),
        value_gradient.swapaxes(1, 2),
        *untiled(tiles_gradient),
    )


def _query_gradient(diagonals: Diagonals, key_range, query, key, value, tiles, *arrays):
    (batch, heads, length, head_dim), block = query.shape, diagonals.block

    def kernel(i, j, meet, done, q, k, v, tile, start, end, lse, delta, do, dq, d_tile, accumulator):
        @pl.when((pl.program_id(1) == 0) & (i == 0) & (pl.program_id(3) == 0))
        def _():
            d_tile[...] = jnp.zeros_like(d_tile)

        @pl.when(meet)
        def _():
            diagonal = diagonals.index(i, j)
            _, d_scores = _gradients(j, diagonal, q, k, v, do, tile, start, end, lse, delta)
            d_tile[0, diagonal] += d_scores
            accumulator[...] += _dot(k[0, 0], d_scores.astype(k.dtype), (0, 0))

        @pl.when(done)
        def _():
            dq[0, 0] = accumulator[...].astype(dq.dtype)

    specs = _Specs(tiles.shape, block, head_dim, queries=_own, keys=_met)
    results = [
        (shaped((batch, heads, head_dim, length), query.dtype, query), specs.columns(head_dim)),
        (shaped(tiles.shape, jnp.float32, query), specs.tiles),
    ]
    inputs, scratch = specs.inputs + specs.saved, [((head_dim, block), 0.0)]
    call = _call("chunked_attention_query_gradient", kernel, key_range, inputs, results, scratch)
    return call(query, key, value, tiles, *arrays)


def _key_gradient(diagonals: Diagonals, query_range, query, key, value, tiles, *arrays):
    head_dim, block = key.shape[3], diagonals.block

    def kernel(j, i, meet, done, q, k, v, tile, start, end, lse, delta, do, dk, dv, k_accumulator, v_accumulator):
        @pl.when(meet)
        def _():
            weights, d_scores = _gradients(j, diagonals.index(i, j), q, k, v, do, tile, start, end, lse, delta)
            v_accumulator[...] += _dot(weights.astype(do.dtype), do[0, 0], (1, 0))
            k_accumulator[...] += _dot(d_scores.astype(q.dtype), q[0, 0], (1, 0))

        @pl.when(done)
        def _():
            dk[0, 0] = k_accumulator[...].astype(dk.dtype)
            dv[0, 0] = v_accumulator[...].astype(dv.dtype)

    specs = _Specs(tiles.shape, block, head_dim, queries=_met, keys=_own)
    results = [(shaped(x.shape, x.dtype, x), specs.keys) for x in (key, value)]
    inputs, scratch = specs.inputs + specs.saved, [((block, head_dim), 0.0)] * 2
    call = _call("chunked_attention_key_gradient", kernel, query_range, inputs, results, scratch)
    return call(query, key, value, tiles, *arrays)


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
    """The block of the other side that it meets in a step; beyond the range the last one of it."""
    return jnp.maximum(jnp.minimum(first[b, i] + step, last[b, i] - 1), 0)


class _Specs:
    """How arrays are cut into blocks.

    Args:
        queries, keys: `_own` and `_met`, or the other way round.
    """

    def __init__(self, tiles: tuple[int, ...], block: int, head_dim: int, queries: Callable, keys: Callable):
        self._block, self._queries = block, queries
        self.queries = pl.BlockSpec((1, 1, block, head_dim), lambda h, b, *at: (b, h, queries(b, *at), 0))
        self.keys = pl.BlockSpec((1, 1, block, head_dim), lambda h, b, *at: (b, h, keys(b, *at), 0))
        self.tiles = pl.BlockSpec((1, *tiles[1:]), lambda h, *_: (h, 0, 0, 0))

    @property
    def inputs(self) -> list[pl.BlockSpec]:
        """Of query, key, value, tiles, start and end."""
        rows = pl.BlockSpec((1, 1, self._block), lambda h, b, *at: (b, 0, self._queries(b, *at)))
        return [self.queries, self.keys, self.keys, self.tiles, rows, rows]

    @property
    def saved(self) -> list[pl.BlockSpec]:
        """Of lse, delta and cotangent."""
        return [self.columns(1), self.columns(1), self.queries]

    def columns(self, size: int) -> pl.BlockSpec:
        """Of a column of this size for each head and query: (batch, heads, size, queries)."""
        return pl.BlockSpec((1, 1, size, self._block), lambda h, b, *at: (b, h, 0, self._queries(b, *at)))


def _call(name: str, kernel: Callable[..., None], ranges, inputs: list, results: list, scratch: list) -> Callable:
    """Runs `kernel(own, met, meet, done, *references)` over the grid (heads, batch, blocks, steps).

    There are as many steps as the longest of the ranges has blocks, and at least one, for the results are written in
    the last.

    Args:
        kernel: given the numbers of its own block and of that which it meets in a step, whether there is such a one,
            and whether the step is the last.
        inputs: their specs; the first is like the query, (batch, heads, length, head_dim).
        results: shapes and specs.
        scratch: shapes in float32, and what they are filled with before the first step.
    """
    first, last = ranges
    batch, blocks = first.shape
    out_shape, out_specs = zip(*results, strict=True)

    def program(first, last, *references):
        b, own, step = pl.program_id(1), pl.program_id(2), pl.program_id(3)
        met = first[b, own] + step

        @pl.when(step == 0)
        def _():
            for reference, (_, value) in zip(references[-len(scratch) :], scratch, strict=True):
                reference[...] = jnp.full_like(reference, value)

        kernel(own, met, met < last[b, own], step == pl.num_programs(3) - 1, *references)

    def call(query: Array, *arrays: Array) -> Any:
        return pl.pallas_call(
            program,
            out_shape=out_shape,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(query.shape[1], batch, blocks, jnp.maximum(jnp.max(last - first), 1)),
                in_specs=inputs,
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape, _ in scratch],
            ),
            compiler_params=_PARAMS,
            name=name,
        )(first, last, query, *arrays)

    return call


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


@functools.cache  # one for each size: they are part of the key of jit's cache
def _kernels(block: int) -> flash.Kernels:
    return flash.Kernels(_forward, _backward, block)
