"""Blocks of 64 queries and 64 keys on a GPU, in the registers of a warpgroup: products, masks, rows of zeros."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.device import is_interpreted
from kernels.typing import Array

BLOCK = 64  # of queries and of keys: rows of one wgmma
NEVER = -1e30  # the score of what is not seen
VECTORS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # one value for each row, or each column
ROWS = VECTORS[0]


def product(a, b, onto: Array | int) -> Any:
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


def row_products(a: Any, b: Any) -> Array:
    """Returns the sum of each row of a times b, blocks in shared memory, in float32."""
    parts = (pl.ds(first, BLOCK) for first in range(0, a.shape[1], BLOCK))
    pairs = ([load(x.at[:, part], plgpu.Layout.WGMMA).astype(jnp.float32) for x in (a, b)] for part in parts)
    return functools.reduce(jnp.add, (jnp.sum(x * y, axis=1) for x, y in pairs))


def masked(scores: Array, whole: Array, keys: Array, axis: int, start: Any, end: Any) -> Array:
    """Scores, NEVER where a query does not see a key. Nothing is compared, or loaded, where a block is seen whole.

    Args:
        whole: whether every query sees every key of the block.
        keys, axis: the number of the first key, and the axis along which keys lie.
        start, end: of each query.
    """

    def mask(scores: Array) -> Array:
        index = keys + plgpu.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), axis, layout=plgpu.Layout.WGMMA)
        first, last = (across(load(x, VECTORS[1 - axis]), 1 - axis) for x in (start, end))
        return jnp.where((first <= index) & (index < last), scores, NEVER)

    return lax.cond(whole, lambda scores: scores, mask, scores)


def clean_keys(j: Array, seen_from: Array, seen_to: Array, *blocks: Any) -> None:
    """Zeros where no query of the sequence sees the keys of block j: NaN times a weight of zero is NaN."""
    place = j * BLOCK

    def seen() -> Array:
        keys = place + plgpu.layout_cast(lax.iota(jnp.int32, BLOCK), ROWS)
        return (seen_from <= keys) & (keys < seen_to)

    clean((place < seen_from) | (seen_to < place + BLOCK), seen, *blocks)


def clean(needed: Array, kept: Callable[[], Array], *blocks: Any) -> None:
    """Zeros in the rows of blocks in shared memory that are not kept."""

    @pl.when(needed)
    def _():
        rows = kept()
        for block in blocks:
            for first in range(0, block.shape[1], BLOCK):  # as many columns as registers are free for
                part = block.at[:, pl.ds(first, BLOCK)]
                values = load(part, plgpu.Layout.WGMMA)
                part[...] = jnp.where(across(rows, 0), values, jnp.zeros_like(values))
                plgpu.commit_smem()  # part after part, lest registers hold several


def across(vector: Array, axis: int, size: int = BLOCK) -> Array:
    """A vector along `axis` of a block with `size` columns."""
    return lax.broadcast_in_dim(vector, (BLOCK, size), (axis,))


def load(ref, layout) -> Array:
    return plgpu.load(ref, layout=layout, optimized=False)


def zeros(columns: int) -> Array:
    return plgpu.layout_cast(jnp.zeros((BLOCK, columns), jnp.float32), plgpu.Layout.WGMMA)


def vector(value: float, layout) -> Array:
    return plgpu.layout_cast(jnp.full((BLOCK,), value, jnp.float32), layout)
