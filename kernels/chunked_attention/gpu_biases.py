"""What distances add to blocks of scores on a GPU, and its gradient: rows in memory, read and written askew.

They go through the cache: an address is a place further in each row, and no bulk copy can follow that.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.chunked_attention.gpu_blocks import BLOCK, load
from kernels.device import is_interpreted
from kernels.typing import Array

LINE = plgpu.Layout.WG_STRIDED((2 * BLOCK,), 1)  # a number for each thread
# Of a block with as much on either side; rows begin in different banks, at multiples of 16 bytes.
SKEWED_WIDTH = 3 * BLOCK + 8


def row_of(biases: Any, b: Array, h: Array, queries: Any) -> Any:
    """The row of biases of a head, (places), or those of a block of queries, (BLOCK, places)."""
    return biases.at[h] if len(biases.shape) == 2 else biases.at[b, h, queries]


def bias_of(row: Any, slot: Array, axis: int) -> Array:
    """The bias of a block, its queries along `axis`: 127 numbers of one row, or one of each query's."""
    query, index = _places(slot, axis)
    if is_interpreted():
        row = row[...]
        return row[index] if row.ndim == 1 else row[query, index].astype(jnp.float32)
    from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
    from jax._src.lib.mlir.dialects import arith, memref, vector
    from jax.experimental.mosaic import gpu as mgpu

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA, plgpu.Layout.WGMMA),
        return_type=plgpu.ShapeDtypeStruct(index.shape, jnp.float32, layout=plgpu.Layout.WGMMA),
    )
    def read(_, row, *indices):
        registers, single = np.empty_like(indices[0].registers), ir.F32Type.get()
        for place, pair in _addresses(axis, row, *indices):
            found = [memref.load(row, address) for address in pair]
            found = [x if x.type == single else arith.extf(single, x) for x in found]
            registers[place] = vector.from_elements(ir.VectorType.get((2,), single), found)
        return mgpu.FragmentedArray(_registers=registers, _layout=indices[0].layout, _is_signed=None)

    return read(row, query, index)  # pyright: ignore[reportCallIssue, reportReturnType]


def put_skewed(block: Array, rows: Any, slot: Array) -> None:
    """Stores a block, its queries along axis 0, where `bias_of` finds it."""
    query, index = _places(slot, 0)
    if is_interpreted():
        rows[...] = rows[...].at[query, index].set(block.astype(rows.dtype))
        return
    from jax._src.lib.mlir.dialects import arith, memref, vector

    layouts = [plgpu.Layout.WGMMA] * 3

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *layouts))
    def store(_, rows, block, *indices):
        for place, pair in _addresses(0, rows, *indices):
            for number, address in enumerate(pair):
                value = vector.extract(block.registers[place], [], [number])
                memref.store(arith.truncf(rows.type.element_type, value), rows, address)

    store(rows, block, query, index)  # pyright: ignore[reportCallIssue]


def add_diagonals(block: Array, skewed: Any, sums: Any) -> None:
    """Adds to sums[BLOCK - 1 - i + j] the elements (i, j) of a block.

    They go through rows in shared memory, zero on both sides, so that what lies on one diagonal is read by one thread:
    row i from column i + 1 on. In bfloat16, whose range is float32's, the rows take half of the memory.
    """
    before = load(sums, LINE)
    put_block(block, skewed, 1)
    plgpu.commit_smem()
    if is_interpreted():  # where each read is a call of its own
        rows = skewed[...]
        read = [rows[i, i + 1 : i + 1 + 2 * BLOCK] for i in range(BLOCK)]
    else:
        read = [load(skewed.at[i, pl.ds(i + 1, 2 * BLOCK)], LINE) for i in range(BLOCK)]
    sums[...] = functools.reduce(jnp.add, (line.astype(jnp.float32) for line in read), before)
    plgpu.commit_smem()


def put_block(block: Array, skewed: Any, place: int) -> None:
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


def _places(slot: Array, axis: int) -> tuple[Array, Array]:
    """The query of each element of a block, its queries along `axis`, and its place in a row of `Diagonals.rows`."""
    query, key = (
        plgpu.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), along, layout=plgpu.Layout.WGMMA)
        for along in (axis, 1 - axis)
    )
    return query, slot * BLOCK + BLOCK - 1 - query + key


def _addresses(axis: int, row: Any, query: Any, index: Any) -> Iterator[tuple[tuple, list[list]]]:
    """Yields the place of each pair of elements that a thread holds, and where in the row, or rows, they lie.

    The distance to a thread's first element is a constant part of each instruction.
    """
    from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
    from jax._src.lib.mlir.dialects import arith, vector

    of_index = ir.IndexType.get()
    firsts = [arith.index_castui(of_index, vector.extract(x.registers.flat[0], [], [0])) for x in (query, index)]
    for place, _ in np.ndenumerate(index.registers):
        down, across, pair = 8 * place[4], 8 * place[1], []
        for e in (0, 1):
            away = (down, across + e - down) if axis == 0 else (across + e, down - across - e)
            address = [arith.addi(x, arith.constant(of_index, n)) for x, n in zip(firsts, away, strict=True)]
            pair.append(address[1:] if len(row.type.shape) == 1 else address)
        yield place, pair
