"""Rows of a matrix in the registers of an NVIDIA GPU (Mosaic GPU): what the kernels of norms and softmax share.

A warp holds whole rows, so that sums over a row need neither shared memory nor barriers. `lanes` threads share a row,
and each loads `vector` neighbours at a time, straight from global memory. A load beyond the matrix gives zeros and a
store there does nothing, so that any width and any number of rows is read and written where it lies. The last tile
overlaps the one before where the rows do not divide, and writes the same values.

A row that is too wide for a warp is cut into parts, each as wide as a warp can hold. A block then has 1, 2 or 4 groups
of 4 warps for one row, and joins what its warps found in shared memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.autotune import tuned
from kernels.device import is_interpreted
from kernels.formats import stored
from kernels.gpu_memory import at, gather, put
from kernels.implementation import Unsupported
from kernels.rows import Mask, Span, one_hot
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
        rows: rows of a tile, a multiple of `tile_rows`; or 4, the parts of a row that a group of warps has.
        programs: blocks of a forward pass that loads columns once.
        back: blocks of a backward pass that adds up over the rows.
        parts: that a row is cut into, 1 or a multiple of 4.
    """

    lanes: int
    vector: int
    rows: int
    programs: int = 528
    back: int = 264
    parts: int = 1

    @property
    def tile_rows(self) -> int:
        """The rows that 4 warps hold when each thread has a part of one."""
        return WARPS * 32 // self.lanes

    def filled(self, width: int) -> int:
        """The columns that the threads have room for, `width` or a few more."""
        step = self.lanes * self.vector * self.parts
        return pl.cdiv(width, step) * step

    def each(self, width: int) -> int:
        """The elements of a row that a thread holds."""
        return self.filled(width) // (self.lanes * self.parts)

    @property
    def layout(self) -> Any:
        """Of a tile: rows over warps, then over groups of lanes; columns over the lanes of a group."""
        width, vector = self.lanes * self.vector, (self.vector,)
        if self.lanes == 32:
            tiling, warps, lanes = plgpu.Tiling(((WARPS, width), vector)), (-3,), (-2,)
        else:
            tiling = plgpu.Tiling(((self.tile_rows, width), (32 // self.lanes, width), vector))
            warps, lanes = (-5,), (-3, -2)
        return plgpu.Layout.TILED(tiling, warp_dims=warps, lane_dims=lanes, vector_dim=-1)

    @property
    def groups(self) -> int:
        """The groups of 4 warps in a block."""
        return max(1, self.parts // WARPS)

    def tight(self, width: int) -> bool:
        """Whether a row leaves no registers free: 512 threads have 128 each."""
        return self.parts == _PARTS[-1] and self.each(width) > 16


class Rows(NamedTuple):
    """The rows of an operation.

    Args:
        operation: the name of its folder.
        columns: what an error calls the columns.
        per_lane: elements of a row that a thread may hold before it spills registers.
    """

    operation: str
    columns: str
    per_lane: int

    def check(self, **tensors: Array | None) -> None:
        """Raises Unsupported for a width that is too large for the registers of a block."""
        for x in tensors.values():
            if x is not None:
                self.heuristic(x.shape[-1], x.dtype)

    def heuristic(self, width: int, format: Any, widest: int = 16) -> Threads:
        """The threads for a width that was not measured: few parts, wide loads, and few idle lanes.

        Args:
            widest: neighbours that a thread may load at once, beside the limit of 16 bytes.
        """
        for parts in _PARTS:
            found = []
            for lanes in (32, 16, 8, 4) if parts == 1 else (32,):
                for vector in (16, 8, 4, 2, 1):
                    threads = Threads(lanes, vector, WARPS, parts=parts)
                    bytes_at_once = vector * jnp.dtype(format).itemsize
                    if width % vector or vector > widest or bytes_at_once > 16 or threads.each(width) > self.per_lane:
                        continue
                    found.append((threads.filled(width) * (1 + 4 / vector), threads))  # elements and loads of a row
            if found:
                threads = min(found, key=lambda pair: pair[0])[1]
                tiles = 1 if parts > 1 else max(1, 32 // threads.each(width))
                return dataclasses.replace(threads, rows=WARPS if parts > 1 else tiles * threads.tile_rows)
        raise Unsupported(
            f"{self.operation}: {width} {self.columns}: implementation='mosaic_gpu' takes at most "
            f"{32 * _PARTS[-1] * self.per_lane}; use implementation='xla'"
        )

    def candidates(self, width: int, format: Any) -> list[Threads]:
        """What tuning chooses among: rows of a tile, and the blocks of a forward and of a backward pass."""
        first = self.heuristic(width, format)
        factors = [tiles for tiles in (1, 2, 4, 8) if tiles == 1 or tiles * first.each(width) <= 64]
        tiles = [dataclasses.replace(first, rows=first.tile_rows * tiles) for tiles in factors]
        blocks = [{"programs": 132 * factor} for factor in (2, 8)] + [{"back": 132 * factor} for factor in (1, 4, 8)]
        return tiles + [dataclasses.replace(first, **block) for block in blocks]

    def call(
        self,
        body: Callable[..., Sequence[Array]],
        tensors: Sequence[Array | None],
        columns: Sequence[Array | None] = (),
        *,
        results: int = 1,
        sums: int = 0,
        mask: Mask | None = None,
        tables: Sequence[np.ndarray] = (),
    ) -> list[Array]:
        """Runs `body(span, *tensors, *columns) -> results` for every tile of rows.

        Args:
            body: takes arrays of (rows, columns) in float32, and functions of nothing that return the columns as such
                arrays; None in the place of a None.
            tensors: (rows, columns) each, the first one not None.
            columns: vectors with one value a column, which a block loads once.
            results: how many there are, each like the first tensor.
            sums: the body also takes `add`, to be called once with so many addends of the shape of a tile: what
                follows the results is their sums over all rows, (columns,) in float32 each.
            mask: the body also takes `seen`, its truth values for the tile.
            tables: the body also takes `lookups`: one in the first table for each element, one in the second for each
                row.
        """
        first = tensors[0]
        assert first is not None
        count, width = first.shape
        threads = self._threads(first, sums > 0)
        rows = 1 if threads.parts > 1 else threads.rows
        tiles = pl.cdiv(count, rows)
        tight = threads.tight(width)
        elements = threads.rows * threads.filled(width) // (threads.parts * WARPS * 32)
        early = elements * sum(x.dtype.itemsize for x in tensors if x is not None) <= 128  # bytes that a thread holds
        programs = min(threads.back if sums else threads.programs if columns and not tight else tiles, tiles)

        def kernel(tensor_refs, column_refs, mask_ref, table_refs, *rest):
            out_refs, sum_refs, scratch = rest[:results], rest[results : results + sums], rest[results + sums :]
            block = _Block(threads, count, width, scratch)
            program = lax.axis_index("block")

            def fetch(tile):
                return [None if ref is None else block.fetch(ref, tile) for ref in tensor_refs]

            def vectors():
                return [None if ref is None else functools.partial(block.columns, ref) for ref in column_refs]

            def step(tile, held, given, add):
                arrays = [a if a is None else a.astype(jnp.float32) for a in held]
                options = {"seen": block.fetch(mask_ref, tile, mask)} if mask else {}
                options |= {"lookups": block.lookups(*table_refs)} if table_refs else {}
                options |= {"add": lambda *addends: add(*(block.counted(a, tile) for a in addends))} if sums else {}
                for ref, result in zip(out_refs, body(block.span, *arrays, *given, **options), strict=True):
                    block.store(ref, stored(result, ref.dtype), tile)

            def ahead(index, carry):
                tile, addends, block.turn = program + index * programs, [], index % 2
                held, totals = carry
                following = fetch(tile + programs) if early else None
                step(tile, held or fetch(tile), given, lambda *found: addends.extend(found))
                return following, list(map(jnp.add, totals, addends))

            def alone(index, _):
                def add(*addends):
                    for ref, addend in zip(scratch[2:], addends, strict=True):
                        block.part(ref)[...] = block.load_part(ref) + addend

                tile, block.turn = program + index * programs, index % 2
                step(tile, fetch(tile), vectors(), add)

            steps = (tiles - program + programs - 1) // programs
            zeros = [plgpu.layout_cast(jnp.zeros(block.shape, jnp.float32), threads.layout)] * sums
            totals = []
            if programs == tiles:
                step(program, fetch(program), vectors(), lambda *found: totals.extend(found))
            elif tight:
                for ref, zero in zip(scratch[2:], zeros, strict=True):
                    block.part(ref)[...] = zero
                lax.fori_loop(0, steps, alone, None)
                totals = [block.load_part(ref) for ref in scratch[2:]]
            else:
                loaded = [None if column is None else column() for column in vectors()]
                given = [None if column is None else lambda column=column: column for column in loaded]
                held = fetch(program) if early else None
                totals = lax.fori_loop(0, steps, ahead, (held, zeros))[1]
            for ref, total in zip(sum_refs, totals, strict=True):
                block.store_sum(ref, total, program)

        partial = jax.ShapeDtypeStruct((programs, width), jnp.float32)
        out_type = [jax.ShapeDtypeStruct(first.shape, first.dtype)] * results + [partial] * sums
        slots = [plgpu.SMEM((2 * _SLOTS, threads.parts), jnp.float32), plgpu.Barrier(num_arrivals=threads.groups)]
        if tight and programs < tiles:
            slots += [plgpu.SMEM((threads.parts, threads.filled(width) // threads.parts), jnp.float32)] * sums
        across_warps = WARPS * threads.filled(width) * 4 if sums and threads.parts == 1 else 2048
        groups = {"num_threads": threads.groups, "thread_name": "group"} if threads.groups > 1 else {}
        found = plgpu.kernel(
            kernel,
            out_type=out_type,
            grid=(programs,),
            grid_names=("block",),
            scratch_types=slots if threads.parts > 1 else [],
            compiler_params=plgpu.CompilerParams(reduction_scratch_bytes=across_warps),
            **groups,
        )(list(tensors), list(columns), mask and mask.seen, [jnp.asarray(table) for table in tables])
        return [*found[:results], *(jnp.sum(part, axis=0) for part in found[results:])]

    def _threads(self, x: Array, sums: bool) -> Threads:
        """For a matrix: as tuned, else as the heuristic says; a tile is no larger than the matrix needs."""
        count, width = x.shape
        first = self.heuristic(width, x.dtype)
        found = tuned(self.operation, "mosaic_gpu", Threads, width=width, format=x.dtype.name)
        found = found if found and found.parts == first.parts else first  # one may have been tuned for wider rows
        if sums:  # sums across warps are made of vectors of at most 16 bytes of float32
            narrow = self.heuristic(width, x.dtype, widest=4)
            rows = WARPS if narrow.parts > 1 else narrow.tile_rows
            return dataclasses.replace(narrow, rows=rows, back=found.back)
        return dataclasses.replace(found, rows=min(found.rows, pl.cdiv(count, found.tile_rows) * found.tile_rows))


class _Block:
    """Inside a kernel: a group of warps, and the tiles of rows that it works on.

    Args:
        count, width: of the matrix.
        scratch: none, or slots in shared memory for a number of each part, and a barrier for all groups.
    """

    def __init__(self, threads: Threads, count: int, width: int, scratch: tuple[Any, ...]):
        self._threads, self._scratch, self._used, self.turn = threads, scratch, 0, 0
        self._step = threads.lanes * threads.vector
        self._count, self._rows = count, 1 if threads.parts > 1 else threads.rows
        self._group = lax.axis_index("group") if threads.groups > 1 else 0
        self.shape = threads.rows, threads.filled(width) // threads.parts
        self._column = self._index(1)
        if threads.parts > 1:
            self._column += (self._group * WARPS + self._index(0)) * self.shape[1]
        filled = threads.filled(width) > width
        self._checked = filled or count < self._rows
        self.span = Span(width, self._column < width if filled else None, self._combined)

    def fetch(self, ref: Any, tile: Any, mask: Mask | None = None) -> Array:
        """A tile of a matrix, in its format; of a mask the rows that belong to a tile of scores."""
        row = self._row(tile)
        return at(
            ref,
            self._threads.layout,
            mask.row(row) if mask else row,
            self._column,
            step=self._step,
            checked=self._checked,
        )

    def columns(self, ref: Any) -> Array:
        """A vector, in float32, laid over the rows of a tile."""
        if self._threads.parts > 1:
            return at(ref, self._threads.layout, self._column, step=self._step, checked=self._checked).astype(
                jnp.float32
            )
        return self._along(ref, self.shape[1])

    def lookups(self, each: Any, one: Any) -> tuple[Callable[..., Array], Callable[..., Array]]:
        """The look-ups of a table for each element of a tile, and of a table for each row."""
        entries = self._along(one, pl.cdiv(one.shape[0], self._step) * self._step)
        places = plgpu.broadcasted_iota(jnp.int32, entries.shape, 1, layout=self._threads.layout)
        return gather(each, self._threads.layout), one_hot(entries, places)

    def store(self, ref: Any, value: Array, tile: Any) -> None:
        """Writes a tile of a matrix."""
        if not is_interpreted():
            put(ref, value, self._threads.layout, self._row(tile), self._column, step=self._step, checked=self._checked)
        elif self._threads.parts == 1:
            rows, width = min(self._rows, self._count), self.span.width
            ref.at[pl.ds(self._start(tile), rows)][...] = value[:rows, :width]
        else:
            self._store_part(ref, value, tile)

    def store_sum(self, ref: Any, total: Array, program: Any) -> None:
        """Writes what a block added up as a row: the sum of each column of a tile."""
        if self._threads.parts > 1:
            layout, total, column = self._threads.layout, total, self._column
        else:
            layout, total = self._threads.layout.reduce(0), jnp.sum(total, axis=0)
            column = plgpu.broadcasted_iota(jnp.int32, total.shape, 0, layout=layout)
        if not is_interpreted():
            row = plgpu.layout_cast(lax.broadcast(program, total.shape), layout)
            put(ref, total, layout, row, column, step=self._step, checked=self._checked)
        elif self._threads.parts == 1:
            ref.at[program][...] = total[: self.span.width]
        else:
            self._store_part(ref, total, program)

    def part(self, ref: Any) -> Any:
        """A group's parts of a row in shared memory."""
        return ref.at[pl.ds(self._group * WARPS, WARPS)]

    def load_part(self, ref: Any) -> Array:
        return plgpu.load(self.part(ref), layout=self._threads.layout, optimized=False)

    def counted(self, x: Array, tile: Any) -> Array:
        """x, and zero in rows that an earlier tile has too or that lie past the end."""
        if self._threads.parts > 1:
            return x
        row = self._row(tile)
        return jnp.where((row >= tile * self._rows) & (row < self._count), x, 0.0)

    def _start(self, tile: Any) -> Any:
        return jnp.minimum(tile * self._rows, max(0, self._count - self._rows))

    def _row(self, tile: Any) -> Array:
        """The row of the matrix for each element of a tile."""
        if self._threads.parts > 1:
            return plgpu.layout_cast(lax.broadcast(self._start(tile), self.shape), self._threads.layout)
        return self._start(tile) + self._index(0)

    def _index(self, axis: int) -> Array:
        return plgpu.broadcasted_iota(jnp.int32, self.shape, axis, layout=self._threads.layout)

    def _along(self, ref: Any, filled: int) -> Array:
        """A vector, in float32 and filled up with zeros, for each row of a tile."""
        layout = self._threads.layout.reduce(0)
        column = plgpu.broadcasted_iota(jnp.int32, (filled,), 0, layout=layout)
        vector = at(ref, layout, column, step=self._step, checked=filled > ref.shape[0]).astype(jnp.float32)
        return lax.broadcast_in_dim(vector, (self.shape[0], filled), (1,))

    def _store_part(self, ref: Any, value: Array, row: Any) -> None:
        """In the interpreter: writes a group's parts of a row, as far as they lie inside."""
        flat = value.reshape(-1)
        for first in range(0, self.span.width, len(flat)):
            length = min(len(flat), self.span.width - first)

            @pl.when(self._group * len(flat) == first)
            def _(first=first, length=length):
                ref.at[row, pl.ds(first, length)][...] = flat[:length]

    def _combined(self, found: Array, operation: Callable[[Array, Array], Array]) -> Array:
        """Joins what was found in each part of a row.

        Each sum of a tile has a slot of its own, and so have two tiles in a row: a warp that is ahead by less than a
        barrier overwrites nothing.
        """
        parts = self._threads.parts
        if parts == 1:
            return found
        slots, barrier = self._scratch[:2]
        slot, self._used = slots.at[self.turn * _SLOTS + self._used], self._used + 1
        self.part(slot)[...] = found
        plgpu.barrier_arrive(barrier)
        plgpu.barrier_wait(barrier)
        total = functools.reduce(operation, (slot[part] for part in range(parts)))
        return lax.broadcast(total, found.shape)
