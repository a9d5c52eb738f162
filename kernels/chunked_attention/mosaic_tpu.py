"""Chunked attention on TPUs: one pass over the blocks of keys that a block of queries sees, and its gradients.

Scores are kept transposed, keys x queries: what there is one of for each query (its range, its maximum, its sum) is
then a vector along the lanes. A step is a block of queries and one of the blocks of keys that it sees; the grid has as
many steps as there are such pairs, and a block that sees nothing has one, in which its zeros are written.
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
from kernels.chunked_attention.blocks import Diagonals, KeyBlocks
from kernels.chunked_attention.online import OnlineSoftmax
from kernels.guard import shaped
from kernels.implementation import Unsupported
from kernels.lut_softmax.mosaic_tpu import gather, lanes
from kernels.lut_softmax.table import Lookup
from kernels.typing import Array, Float

LARGEST_TILES = 8 * 2**20  # bytes of VMEM that the bias of one head may take, twice in the backward pass
LARGEST_SCHEDULE = 2**17  # pairs of blocks, 4 bytes each, of the megabyte of scalar memory
_NEVER = -1e30  # the score of what is not seen
_LEAST = _NEVER / 2  # the least maximum: a row that has seen nothing weighs by 0 what is not seen, whatever its number


@dataclasses.dataclass(frozen=True)
class BlockSize:
    """Args:
    block: queries, and keys, of a block; multiples of 128, for Mosaic cannot prove smaller slices of lanes aligned.
    """

    block: int = 128


def candidates(width: int, format: str) -> list[BlockSize]:
    """What tuning chooses among, whatever the problem."""
    return [BlockSize(128), BlockSize(256)]


def chunked_attention(query, key, value, positions, key_start, key_end, softmax, chunks=None) -> Array:
    """See `api.chunked_attention`. The ranges of blocks come from the rows; `chunks` limit what positions store."""
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise Unsupported(
            f"chunked_attention: query is {query.dtype}, which a TPU kernel cannot load: use float32 or bfloat16, or "
            "implementation='xla'"
        )
    width, distances = query.shape[3], 1 if positions.query is not None else positions.bias.shape[1]
    size = tuned("chunked_attention", "mosaic_tpu", BlockSize, width=width, format=query.dtype.name) or BlockSize()
    if (tiles_bytes := 4 * 2 * size.block * distances) > LARGEST_TILES:
        raise Unsupported(
            f"chunked_attention: relative_bias has {distances} distances, about {tiles_bytes / 2**20:.0f} MiB of VMEM "
            "a head: use fewer, or implementation='xla'"
        )
    return flash.attention(_kernels(size.block), query, key, value, positions, key_start, key_end, softmax, chunks)


# ------------------------------------------------------------------------ forward


def _forward(diagonals: Diagonals, online: OnlineSoftmax | None, key_range, query, key, value, biases, start, end):
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    tiles = diagonals.tiles(biases).swapaxes(-1, -2)
    (batch, heads, length, head_dim), block = query.shape, diagonals.block
    tables = [] if online is None else [online.tables.exp.table.values, online.tables.reciprocal.table.values]
    tables = [jnp.asarray(lanes(table)) for table in tables]

    def kernel(i, j, meet, done, whole, q, k, v, tile, start, end, *refs):
        *tables, out, lse, total, maximum, accumulator = refs

        @pl.when(meet)
        def _():
            scores = _masked(_scores(k, q) + tile[_place(tile, diagonals.index(i, j))], whole, j, start[0], end[0])
            old, new = maximum[...], jnp.maximum(maximum[...], jnp.max(scores, axis=0, keepdims=True))
            if online is None:
                weights, decay = jnp.exp(scores - new), jnp.exp(old - new)
            else:
                seen = scores > _NEVER
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

    steps = _Steps(key_range.first, key_range.last, key.shape[2] // block)
    specs = _Specs(steps, tiles.shape, diagonals, head_dim)
    inputs = specs.inputs + [pl.BlockSpec(table.shape, lambda *_: (0, 0)) for table in tables]
    results = [
        (shaped((batch, heads, head_dim, length), query.dtype, query), specs.columns(head_dim)),
        (shaped((batch, heads, 1, length), jnp.float32, query), specs.columns(1)),
    ]
    scratch = [((1, block), 0.0), ((1, block), _LEAST), ((head_dim, block), 0.0)]
    call = _call("chunked_attention", kernel, steps, key_range, inputs, results, scratch)
    out, lse = call(query, key, value, tiles, start[:, None], end[:, None], *tables)
    return out.transpose(0, 3, 1, 2), lse[:, :, 0]


# ----------------------------------------------------------------------- backward


def _backward(diagonals: Diagonals, key_range, query_range, query, key, value, biases, start, end, lse, out, cotangent):
    delta = jnp.einsum("bqhd,bqhd->bhq", cotangent, out, preferred_element_type=jnp.float32)
    delta = jnp.where((start < end)[:, None], delta, 0.0)
    query, key, value, cotangent = (x.swapaxes(1, 2) for x in (query, key, value, cotangent))
    rows = start[:, None], end[:, None], lse[:, :, None], delta[:, :, None]
    tiles, untiled = jax.vjp(lambda biases: diagonals.tiles(biases).swapaxes(-1, -2), biases)
    arrays = query, key, value, tiles, *rows, cotangent
    query_gradient, tiles_gradient = _query_gradient(diagonals, key_range, *arrays)
    key_gradient, value_gradient = _key_gradient(diagonals, query_range, key_range, *arrays)
    return (
        query_gradient.transpose(0, 3, 1, 2),
        key_gradient.swapaxes(1, 2),
        value_gradient.swapaxes(1, 2),
        *untiled(tiles_gradient),
    )


def _query_gradient(diagonals: Diagonals, key_range, query, key, value, tiles, *arrays):
    (batch, heads, length, head_dim), block = query.shape, diagonals.block

    def kernel(i, j, meet, done, whole, q, k, v, tile, start, end, lse, delta, do, dq, d_tile, accumulator):
        shared = tiles.ndim == 4  # by all queries of a head: a sum, which stays

        @pl.when(pl.program_id(1) == 0 if shared else True)
        def _():
            d_tile[...] = jnp.zeros_like(d_tile)

        @pl.when(meet)
        def _():
            diagonal = diagonals.index(i, j)
            _, d_scores = _gradients(j, diagonal, whole, q, k, v, do, tile, start, end, lse, delta)
            d_tile[_place(d_tile, diagonal)] += d_scores.astype(d_tile.dtype)
            accumulator[...] += _dot(k[0, 0], d_scores.astype(k.dtype), (0, 0))

        @pl.when(done)
        def _():
            dq[0, 0] = accumulator[...].astype(dq.dtype)

    steps = _Steps(key_range.first, key_range.last, key.shape[2] // block)
    specs = _Specs(steps, tiles.shape, diagonals, head_dim)
    results = [
        (shaped((batch, heads, head_dim, length), query.dtype, query), specs.columns(head_dim)),
        (shaped(tiles.shape, tiles.dtype, query), specs.tiles),
    ]
    inputs, scratch = specs.inputs + specs.saved, [((head_dim, block), 0.0)]
    call = _call("chunked_attention_query_gradient", kernel, steps, key_range, inputs, results, scratch)
    query_gradient, tiles_gradient = call(query, key, value, tiles, *arrays)
    if tiles.ndim > 4:  # those of blocks that never met were not written
        met = jnp.arange(tiles.shape[2])[:, None] - diagonals.last + jnp.arange(diagonals.slots)
        written = (key_range.first[..., None] <= met) & (met < key_range.last[..., None])
        tiles_gradient = jnp.where(written[:, None, ..., None, None], tiles_gradient, 0)
    return query_gradient, tiles_gradient


def _key_gradient(diagonals: Diagonals, query_range, key_range, query, key, value, tiles, *arrays):
    head_dim, block = key.shape[3], diagonals.block

    def kernel(j, i, meet, done, whole, q, k, v, tile, start, end, lse, delta, do, dk, dv, *accumulators):
        k_accumulator, v_accumulator = accumulators

        @pl.when(meet)
        def _():
            weights, d_scores = _gradients(j, diagonals.index(i, j), whole, q, k, v, do, tile, start, end, lse, delta)
            v_accumulator[...] += _dot(weights.astype(do.dtype), do[0, 0], (1, 0))
            k_accumulator[...] += _dot(d_scores.astype(q.dtype), q[0, 0], (1, 0))

        @pl.when(done)
        def _():
            dk[0, 0] = k_accumulator[...].astype(dk.dtype)
            dv[0, 0] = v_accumulator[...].astype(dv.dtype)

    (first, last), num_met = query_range, query.shape[2] // block
    steps = _Steps(first, last, num_met, keys=True)
    specs = _Specs(steps, tiles.shape, diagonals, head_dim)
    results = [(shaped(x.shape, x.dtype, x), specs.keys) for x in (key, value)]
    inputs, scratch = specs.inputs + specs.saved, [((block, head_dim), 0.0)] * 2
    call = _call("chunked_attention_key_gradient", kernel, steps, key_range, inputs, results, scratch)
    return call(query, key, value, tiles, *arrays)


def _gradients(j, diagonal, whole, q, k, v, do, tile, start, end, lse, delta) -> tuple[Array, Array]:
    """P and dS of a block, transposed."""
    # Masked first: exp of a score that no query sees could be infinite.
    weights = jnp.exp(_masked(_scores(k, q) + tile[_place(tile, diagonal)] - lse[0, 0], whole, j, start[0], end[0]))
    return weights, weights * (_scores(v, do) - delta[0, 0])


# ------------------------------------------------------------------------- common


class _Steps:
    """The steps of a grid (heads, steps): pairs of an own block and one that it meets, in the order of own blocks.

    Args:
        first, last: (batch, own blocks): each meets the blocks [first, last) of the other side.
        num_met: the blocks of the other side.
        keys: whether the own blocks are of keys.
    """

    def __init__(self, first: Array, last: Array, num_met: int, keys: bool = False):
        (batch, own), self.keys = first.shape, keys
        self._bits = (own - 1).bit_length(), (num_met - 1).bit_length()
        if (pairs := batch * own * num_met) > LARGEST_SCHEDULE:
            raise Unsupported(
                f"chunked_attention: {pairs} pairs of blocks in {batch} sequences, and {LARGEST_SCHEDULE} fit into the "
                "scalar memory: give fewer or shorter sequences at a time, or use implementation='xla'"
            )
        steps = jnp.maximum(last - first, 1).reshape(-1)
        rows = jnp.repeat(jnp.arange(batch * own), steps, total_repeat_length=pairs)
        met = first.reshape(-1)[rows] + jnp.arange(pairs) - (jnp.cumsum(steps) - steps)[rows]
        numbers = (rows // own << self._bits[0] | rows % own) << self._bits[1] | met
        self.count, self.scalars = jnp.sum(steps), (numbers.astype(jnp.int32), first, last)

    def at(self, step: Any, numbers: Any) -> tuple[Array, Array, Array]:
        """The number in the batch, the own block and the one that it meets."""
        (own_bits, met_bits), number = self._bits, numbers[step]
        own = number >> met_bits
        return own >> own_bits, own & ((1 << own_bits) - 1), number & ((1 << met_bits) - 1)

    def spec(self, shape: tuple[int, ...], place: Callable[..., tuple]) -> pl.BlockSpec:
        """Blocks of this shape at place(batch, head, block of queries, block of keys)."""

        def index(h, step, numbers, *_):
            b, own, met = self.at(step, numbers)
            return place(b, h, met, own) if self.keys else place(b, h, own, met)

        return pl.BlockSpec(shape, index)


class _Specs:
    """How arrays are cut into blocks."""

    def __init__(self, steps: _Steps, tiles: tuple[int, ...], diagonals: Diagonals, head_dim: int):
        self._steps, self._block = steps, (block := diagonals.block)
        self.queries = steps.spec((1, 1, block, head_dim), lambda b, h, i, j: (b, h, i, 0))
        self.keys = steps.spec((1, 1, block, head_dim), lambda b, h, i, j: (b, h, j, 0))
        if len(tiles) == 4:  # one for all queries of a head
            self.tiles = pl.BlockSpec((1, *tiles[1:]), lambda h, *_: (h, 0, 0, 0))
        else:
            size = 1, 1, 1, 1, block, block
            self.tiles = steps.spec(size, lambda b, h, i, j: (b, h, i, diagonals.index(i, j), 0, 0))

    @property
    def inputs(self) -> list[pl.BlockSpec]:
        """Of query, key, value, tiles, start and end."""
        rows = self._steps.spec((1, 1, self._block), lambda b, h, i, j: (b, 0, i))
        return [self.queries, self.keys, self.keys, self.tiles, rows, rows]

    @property
    def saved(self) -> list[pl.BlockSpec]:
        """Of lse, delta and cotangent."""
        return [self.columns(1), self.columns(1), self.queries]

    def columns(self, size: int) -> pl.BlockSpec:
        """Of a column of this size for each head and query: (batch, heads, size, queries)."""
        return self._steps.spec((1, 1, size, self._block), lambda b, h, i, j: (b, h, 0, i))


def _call(
    name: str, kernel: Callable[..., None], steps: _Steps, keys: KeyBlocks, inputs: list, results: list, scratch: list
) -> Callable:
    """Runs `kernel(own, met, meet, done, whole, *references)` over the grid (heads, steps).

    Args:
        kernel: given the numbers of its own block and of that which it meets in a step, whether there is such a one,
            whether the step is the own block's last, and whether every query of the two sees every key.
        inputs: their specs; the first is like the query, (batch, heads, length, head_dim).
        results: shapes and specs.
        scratch: shapes in float32, and what they are filled with before the first step of an own block.
    """
    out_shape, out_specs = zip(*results, strict=True)

    def program(numbers, first, last, whole_first, whole_last, *references):
        b, own, met = steps.at(pl.program_id(1), numbers)
        i, j = (met, own) if steps.keys else (own, met)

        @pl.when(met == first[b, own])
        def _():
            for reference, (_, value) in zip(references[-len(scratch) :], scratch, strict=True):
                reference[...] = jnp.full_like(reference, value)

        whole = (whole_first[b, i] <= j) & (j < whole_last[b, i])
        kernel(own, met, met < last[b, own], met + 1 >= last[b, own], whole, *references)

    def call(query: Array, *arrays: Array) -> Any:
        return pl.pallas_call(
            program,
            out_shape=out_shape,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=5,
                grid=(query.shape[1], steps.count),
                in_specs=inputs,
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape, _ in scratch],
            ),
            compiler_params=_PARAMS,
            name=name,
        )(*steps.scalars, keys.whole_first, keys.whole_last, query, *arrays)

    return call


def _masked(scores: Array, whole: Array, j: Array, start: Array, end: Array) -> Array:
    """Scores, keys x queries, _NEVER where a query does not see a key. Nothing is compared where a block is seen whole.

    Args:
        j: the block of keys.
        start, end: (1, queries).
    """

    def mask(scores: Array) -> Array:
        keys = j * len(scores) + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        return jnp.where((start <= keys) & (keys < end), scores, _NEVER)

    return jax.lax.cond(whole, lambda scores: scores, mask, scores)


def _place(tile: Any, slot: Array) -> tuple:
    """Where the tile of two blocks lies in what was loaded: all slots of a head, or that of these blocks alone."""
    return (0, slot) if len(tile.shape) == 4 else (0, 0, 0, 0)


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


_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))


@functools.cache  # one for each size: they are part of the key of jit's cache
def _kernels(block: int) -> flash.Kernels:
    return flash.Kernels(_forward, _backward, block, block)
