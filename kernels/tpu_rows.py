"""Rows of a matrix in the vector memory of a TPU (Mosaic): what the kernels of norms and softmax share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.autotune import tuned
from kernels.formats import stored
from kernels.guard import shaped
from kernels.implementation import Unsupported
from kernels.rows import Mask, Span, one_hot
from kernels.typing import Array, Float

ROWS = 32  # a multiple of every format's tile: 8 rows of float32, 16 of bfloat16, 32 of float8
LANES = 128  # columns of a register
WIDEST = 2**14  # elements of a row


@dataclasses.dataclass(frozen=True)
class Height:
    """Args:
    rows: rows of a block, a multiple of ROWS.
    """

    rows: int


class Rows(NamedTuple):
    """The rows of an operation.

    Args:
        operation: the name of its folder.
        columns: what an error calls the columns.
        block_bytes: of a block in float32; several are in flight, and vector memory holds 16 MiB or more.
        whole_lanes: blocks are as wide as whole registers, and so read past the last column.
    """

    operation: str
    columns: str
    block_bytes: int
    whole_lanes: bool = False

    def check(self, **tensors: Array | None) -> None:
        """Raises Unsupported for rows that are too wide, and for float16."""
        for name, x in tensors.items():
            if x is not None and x.dtype == jnp.float16:
                raise Unsupported(
                    f"{self.operation}: the format of {name} is float16, which TPUs cannot load: cast it to bfloat16 "
                    "or float32, or use implementation='xla'"
                )
            if x is not None and x.shape[-1] > WIDEST:
                raise Unsupported(
                    f"{self.operation}: {x.shape[-1]} {self.columns}: a block of vector memory holds rows of {WIDEST}: "
                    "use implementation='xla'"
                )

    def heuristic(self, width: int) -> Height:
        """The height of a block for a width that was not measured."""
        return Height(max(ROWS, self.block_bytes // (4 * width) // ROWS * ROWS))

    def candidates(self, width: int, format: Any) -> list[Height]:
        """What tuning chooses among, around the heuristic's choice."""
        first = self.heuristic(width).rows
        return [Height(rows) for rows in sorted({max(ROWS, first * n // 4 // ROWS * ROWS) for n in (1, 2, 4, 8)})]

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
        """As `gpu_rows.Rows.call`. `jax.vmap` calls in turn, for sums belong to one call."""
        first = tensors[0]
        assert first is not None
        count, width = first.shape
        found = tuned(self.operation, "mosaic_tpu", Height, width=width, format=first.dtype.name)
        block = min((found or self.heuristic(width)).rows, pl.cdiv(count, ROWS) * ROWS)
        shared = mask is not None and len(mask.seen) == 1 < count  # one row of the mask for all
        masks = None if mask is None else (mask.seen if shared else mask.whole(count)).astype(jnp.int8)  # or 32 bits

        def kernel(tensor_refs, column_refs, mask_ref, table_refs, *rest):
            held = [None if ref is None else ref[...].astype(jnp.float32) for ref in tensor_refs]
            given = [None if ref is None else lambda ref=ref: ref[...].astype(jnp.float32) for ref in column_refs]
            shape, options = (block, tensor_refs[0].shape[1]), {}
            inside = jax.lax.broadcasted_iota(jnp.int32, shape, 1) < width if self.whole_lanes else None
            span = Span(width, inside)
            held = [a if a is None else span.own(a) for a in held]
            if mask_ref is not None:
                options["seen"] = span.own(jnp.broadcast_to(mask_ref[...].astype(jnp.int32), shape)) > 0
            if table_refs:
                each, one = (ref[...] for ref in table_refs)
                one = jnp.broadcast_to(one, (block, one.shape[1]))
                place = jax.lax.broadcasted_iota(jnp.int32, one.shape, 1)
                options["lookups"] = gather(each), one_hot(one, place)
            addends = []
            if sums:
                options["add"] = lambda *found: addends.extend(found)
            for ref, out in zip(rest[:results], body(span, *held, *given, **options), strict=True):
                ref[...] = stored(out, ref.dtype)
            # The last block reads past the end: whatever stands there counts for nothing.
            row = pl.program_id(0) * block + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
            for ref, addend in zip(rest[results:], addends, strict=True):
                total = jnp.sum(jnp.where(row < count, addend, 0.0), axis=0, keepdims=True)

                @pl.when(pl.program_id(0) == 0)
                def _(ref=ref, total=total):
                    ref[...] = total

                @pl.when(pl.program_id(0) > 0)
                def _(ref=ref, total=total):
                    ref[...] += total

        def spec(x: Any, rows: int) -> pl.BlockSpec | None:
            lanes = 0 if x is None else pl.cdiv(x.shape[1], LANES) * LANES if self.whole_lanes else x.shape[1]
            return None if x is None else pl.BlockSpec((rows, lanes), lambda i: (i if rows == block else 0, 0))

        vectors = [None if x is None else x[None] for x in columns]
        entries = [jnp.asarray(lanes(table)) for table in tables]
        like, total = shaped(first.shape, first.dtype, first), shaped((1, width), jnp.float32, first)
        called = pl.pallas_call(
            kernel,
            out_shape=[like] * results + [total] * sums,
            grid=(pl.cdiv(count, block),),
            in_specs=[
                [spec(x, block) for x in tensors],
                [spec(x, 1) for x in vectors],
                spec(masks, 1 if shared else block),
                [spec(x, 1) for x in entries],
            ],
            out_specs=[spec(like, block)] * results + [spec(total, 1)] * sums,
            compiler_params=pltpu.CompilerParams(dimension_semantics=(pltpu.ARBITRARY if sums else pltpu.PARALLEL,)),
        )
        found = jax.custom_batching.sequential_vmap(called)(list(tensors), vectors, masks, entries)
        return [*found[:results], *(total[0] for total in found[results:])]


def lanes(values: np.ndarray) -> np.ndarray:
    """A table as a row of whole registers."""
    return np.pad(values, (0, -len(values) % LANES))[None]


def gather(entries: Float[Array, "1 entries"]) -> Callable[[Any, Array], Array]:
    """A look-up for each element: one gather along the lanes for every 128 entries, and 128 keys at a time."""

    def lookup(_: Any, index: Array) -> Array:
        parts = [entries[:, first : first + LANES] for first in range(0, entries.shape[1], LANES)]
        parts = [jnp.broadcast_to(part, (index.shape[0], LANES)) for part in parts]
        columns = []
        for first in range(0, index.shape[1], LANES):
            wanted = index[:, first : first + LANES]
            found = jnp.take_along_axis(parts[0], wanted % LANES, axis=1)
            for number, part in enumerate(parts[1:], 1):
                here = wanted // LANES == number
                found = jnp.where(here, jnp.take_along_axis(part, wanted % LANES, axis=1), found)
            columns.append(found)
        return columns[0] if len(columns) == 1 else jnp.concatenate(columns, axis=1)

    return lookup
