"""Rows of a matrix in the registers of a GPU: what the kernels of LayerNorm and of softmax on Mosaic GPU share.

A warp holds whole rows, so that their sums need neither shared memory nor barriers: `lanes` threads share a row and
load `vector` neighbouring elements at a time, straight from global memory. A block of 4 warps holds `rows` rows at
once, which are the memory accesses in flight. The last block overlaps the one before where the rows do not divide, and
writes the same values.

A row that is too wide for a warp lies in parts, each as a warp holds a row: a block of 1, 2 or 4 groups of 4 warps then
has one row, and what its warps found meets in shared memory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.autotune import tuned
from kernels.broadcast import along
from kernels.device import is_interpreted
from kernels.implementation import Unsupported
from kernels.span import Span
from kernels.typing import Array

WARPS = 4
_PARTS = (1, 4, 8, 16)
_SLOTS = 8  # more than a body has reductions


@dataclasses.dataclass(frozen=True)
class Threads:
    """How rows are spread over threads.

    Args:
        lanes: threads of a warp that share a row, a power of two up to 32.
        vector: neighbouring elements that a thread loads at once.
        rows: rows of a block, a multiple of `tile_rows`; or 4, the parts that a group of warps has of a row.
        programs: blocks of a pass that adds up over the rows, which they go through together.
        parts: that a row is cut into, 1 or a multiple of 4.
    """

    lanes: int
    vector: int
    rows: int
    programs: int = 660
    parts: int = 1

    @property
    def tile_rows(self) -> int:
        """Rows that 4 warps hold when each thread has a part of one."""
        return WARPS * 32 // self.lanes

    @property
    def layout(self) -> Any:
        """Of a block of rows: rows over warps, then over groups of lanes; columns over the lanes of a group."""
        width, vector = self.lanes * self.vector, (self.vector,)
        if self.lanes == 32:
            tiling, warps, lanes = plgpu.Tiling(((WARPS, width), vector)), (-3,), (-2,)
        else:
            tiling = plgpu.Tiling(((self.tile_rows, width), (32 // self.lanes, width), vector))
            warps, lanes = (-5,), (-3, -2)
        return plgpu.Layout.TILED(tiling, warp_dims=warps, lane_dims=lanes, vector_dim=-1)

    @property
    def groups(self) -> int:
        """Of 4 warps, in a block."""
        return max(1, self.parts // WARPS)


class Rows(NamedTuple):
    """The rows of an operation.

    Args:
        operation: the name of its folder.
        columns: what the columns are called in the message of an error.
        per_lane: elements of a row that a thread may hold before it spills registers.
    """

    operation: str
    columns: str
    per_lane: int

    def threads(self, x: Array) -> Threads:
        """Of a matrix: as it was tuned, else as the heuristic says; a block is no larger than the matrix needs."""
        count, width = x.shape
        found = tuned(self.operation, "mosaic_gpu", Threads, width=width, format=x.dtype.name)
        first = self.heuristic(width, x.dtype)
        found = found if found and found.parts == first.parts else first  # one may have been tuned for wider rows
        return dataclasses.replace(found, rows=min(found.rows, pl.cdiv(count, found.tile_rows) * found.tile_rows))

    def filled(self, width: int) -> tuple[int, int, int]:
        """A width with the columns that fill it up, the lanes that share a row of it, and the row's parts.

        Raises Unsupported for a width that is too large for the registers of a block.
        """
        lanes = min(32, width & -width)
        if width % 16 == 0 and width // lanes <= self.per_lane:
            return width, lanes, 1
        for parts in _PARTS:
            step = 32 * parts if width % (32 * parts) == 0 else 64 * parts  # neighbours in pairs, where there is a copy
            if (filled := pl.cdiv(width, step) * step) <= 32 * parts * self.per_lane:
                return filled, 32, parts
        raise Unsupported(
            f"{self.operation}: {width} {self.columns}: implementation='mosaic_gpu' takes at most "
            f"{32 * _PARTS[-1] * self.per_lane}; use implementation='xla'"
        )

    def heuristic(self, width: int, format: Any) -> Threads:
        """For a width that was not measured: as many lanes a row as divide it, and loads of up to 16 bytes."""
        filled, lanes, parts = self.filled(width)
        each = filled // lanes // parts
        vector = math.gcd(each, 16 // jnp.dtype(format).itemsize)
        rows = WARPS if parts > 1 else max(1, 32 // each) * WARPS * 32 // lanes
        return Threads(lanes, vector, rows, parts=parts)

    def candidates(self, width: int, format: Any) -> list[Threads]:
        """What tuning chooses among: the memory accesses in flight, and the programs of a pass that adds up."""
        first = self.heuristic(width, format)
        factors = [tiles for tiles in (1, 2, 4, 8) if tiles == 1 or tiles * width // first.lanes <= 64]
        forward = [dataclasses.replace(first, rows=first.tile_rows * tiles) for tiles in factors]
        return forward + [dataclasses.replace(first, programs=132 * factor) for factor in (2, 4, 8)]


class Block:
    """Inside a kernel: the rows that a group of warps works on.

    Args:
        width: of a row, without the columns that only fill it up.
        filled: with them.
        scratch: none, or slots in shared memory for a number of each part, and a barrier for all groups.
    """

    def __init__(self, threads: Threads, width: int, filled: int, scratch: tuple[Any, ...]):
        self.threads, self.scratch, self._used = threads, scratch, 0
        self.group = lax.axis_index("group") if threads.groups > 1 else 0
        self.shape = threads.rows, filled // threads.parts
        inside = None
        if filled > width:
            columns = self.index(1)
            if threads.parts > 1:
                columns = columns + (self.group * WARPS + self.index(0)) * self.shape[1]
            inside = columns < width
        self.span = Span(width, inside, self._combined)

    def place(self, row: Any) -> Any:
        """Where the block lies, from a row on."""
        if self.threads.parts > 1:
            return pl.ds(row * self.threads.parts + self.group * WARPS, WARPS)
        return pl.ds(row, self.threads.rows)

    def load(self, ref: Any, row: Any) -> Array:
        """The block from a row on, in float32."""
        return load(ref.at[self.place(row)], self.threads.layout)

    def columns(self, ref: Any) -> Array:
        """What is the same for every row, in float32."""
        if self.threads.parts > 1:
            return load(ref.at[pl.ds(self.group * WARPS, WARPS)], self.threads.layout)
        return along(load(ref, self.threads.layout.reduce(0)), self.threads.rows)

    def index(self, axis: int) -> Array:
        """The number of each row or column."""
        return plgpu.broadcasted_iota(jnp.int32, self.shape, axis, layout=self.threads.layout)

    def _combined(self, found: Array, operation: Callable[[Array, Array], Array]) -> Array:
        """What was found in each part of a row, together."""
        parts = self.threads.parts
        if parts == 1:
            return found
        slots, barrier = self.scratch
        slot, self._used = slots.at[self._used % _SLOTS], self._used + 1  # the next reduction takes another one
        slot.at[pl.ds(self.group * WARPS, WARPS)][...] = found
        plgpu.barrier_arrive(barrier)
        plgpu.barrier_wait(barrier)
        total = functools.reduce(operation, (slot[part] for part in range(parts)))
        return lax.broadcast(total, found.shape)


def run(
    body: Callable[..., None],
    threads: Threads,
    width: int,
    filled: int,
    programs: int,
    out_type: Any,
    arrays: Sequence[Array | None],
    scratch_bytes: int = 2048,
) -> Any:
    """The results of `body(block, program, *references)` in so many programs.

    Args:
        scratch_bytes: of shared memory, for sums across warps.
    """

    def kernel(*references):
        count = 2 if threads.parts > 1 else 0
        references, scratch = references[: len(references) - count], references[len(references) - count :]
        body(Block(threads, width, filled, scratch), lax.axis_index("block"), *references)

    scratch = [plgpu.SMEM((_SLOTS, threads.parts), jnp.float32), plgpu.Barrier(num_arrivals=threads.groups)]
    groups = {"num_threads": threads.groups, "thread_name": "group"} if threads.groups > 1 else {}
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        grid=(programs,),
        grid_names=("block",),
        scratch_types=scratch if threads.parts > 1 else [],
        compiler_params=plgpu.CompilerParams(reduction_scratch_bytes=scratch_bytes),
        **groups,
    )(*arrays)


def call(
    body: Callable[..., None],
    threads: Threads,
    tensors: Sequence[Array | None],
    others: Sequence[Array | None] = (),
    results: int = 1,
    *,
    width: int,
    slab: int | None = None,
) -> list[Array]:
    """Runs `body(block, row, *references)` for every block of rows, from `row` on.

    Args:
        body: given references to the tensors, to the others and to the results, and None in the place of a None.
        tensors: `laid` for the threads each, the first one not None.
        others: what every block reads as a whole.
        results: how many there are, each like the first tensor.
        width: of a row, without what fills it up.
        slab: rows that no block reaches beyond, a part of all rows and as many as a block has at least; None for all.
    """
    first = tensors[0]
    assert first is not None
    rows = 1 if threads.parts > 1 else threads.rows
    count, filled = len(first) // threads.parts, first.shape[1] * threads.parts
    slab = count if slab is None or rows == 1 else slab
    blocks = pl.cdiv(slab, rows)

    def at_rows(block, program, *references):
        inner = jnp.minimum(program % blocks * rows, slab - rows)
        body(block, program // blocks * slab + inner if slab < count else inner, *references)

    out_type = [jax.ShapeDtypeStruct(first.shape, first.dtype)] * results
    return run(at_rows, threads, width, filled, count // slab * blocks, out_type, (*tensors, *others))


def laid(x: Array | None, threads: Threads, filled: int, rows: int) -> Any:
    """A matrix as `threads` read it: filled up to the width, and to so many rows; parts of rows below one another.

    A vector of columns likewise.
    """
    if x is None:
        return x
    matrix = x[None] if x.ndim == 1 else x
    short = 0 if x.ndim == 1 or threads.parts > 1 else max(0, rows - len(matrix))
    if short or matrix.shape[1] < filled:
        matrix = jnp.pad(matrix, ((0, short), (0, filled - matrix.shape[1])))
    if threads.parts > 1:
        return matrix.reshape(-1, filled // threads.parts)
    return matrix[0] if x.ndim == 1 else matrix


def unlaid(y: Array, threads: Threads, count: int, width: int) -> Array:
    """A matrix of so many rows, from what `laid` it."""
    return y.reshape(-1, y.shape[1] * threads.parts)[:count, :width]


def load(ref: Any, layout: Any) -> Array:
    """In float32; of truth values whether they are true."""
    if ref.dtype != jnp.bool_:
        return plgpu.load(ref, layout=layout, optimized=False).astype(jnp.float32)
    return plgpu.load(ref, layout=layout, optimized=False) if is_interpreted() else _load_bytes(ref, layout) != 0


def _load_bytes(ref: Any, layout: Any) -> Array:
    """Truth values as XLA stores them, a byte each; Mosaic would read bits."""
    from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
    from jax._src.lib.mlir.dialects import builtin, llvm
    from jax.experimental.mosaic import gpu as mgpu

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=plgpu.ShapeDtypeStruct(ref.shape, jnp.uint8, layout=layout),
    )
    def load_bytes(_, bits):
        kind, word = ir.MemRefType(bits.type), ir.IntegerType.get_signless(64)
        pointer, sizes = llvm.PointerType.get(), llvm.ArrayType.get(word, len(kind.shape))
        descriptor = llvm.StructType.get_literal([pointer, pointer, word, sizes, sizes])
        of_bytes = ir.MemRefType.get(kind.shape, ir.IntegerType.get_signless(8), kind.layout, kind.memory_space)
        # A reference to bits and one to bytes are the same pointers and offsets, which now count bytes.
        same = builtin.unrealized_conversion_cast([descriptor], [bits])
        same = builtin.unrealized_conversion_cast([of_bytes], [same])
        return mgpu.FragmentedArray.load_untiled(same, layout=layout.to_mgpu(), is_signed=False, optimized=False)

    return load_bytes(ref)  # pyright: ignore[reportCallIssue]
