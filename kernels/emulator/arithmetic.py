"""A device's arithmetic: every result is rounded to a format, and sums have a chosen order."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from kernels.emulator.format import Format
from kernels.typing import Array, Float

_TILE = 2**21  # products of a matrix multiplication held at a time


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Arithmetic that rounds the result of each operation to a format.

    Operands are float32 arrays of values that the format holds (`round` makes them). An operation is computed in
    float32, then rounded. For + - * / and sqrt this gives the correctly rounded result where the wider format has at
    least 2 p + 2 bits of precision and the narrow one p (Figueroa, 1995): float32 has 24, and float16 p = 11.

    Args:
        format: the format of operands and results.
        accumulation: the format of the products and partial sums in `sum` and `matmul`, whose results are then rounded
            to `format`. None is `format` itself.
        block: the order of summation. A tree sums each `block` addends in turn, and the sums of the blocks are added
            one after another. 1 makes a sequential sum, None a single tree; less than 1 is a ValueError. A tree adds
            the second half of its addends to the first half until one is left; of an odd number, the middle one waits.
    """

    format: Format
    accumulation: Format | None = None
    block: int | None = None

    def __post_init__(self):
        if self.block is not None and self.block < 1:
            raise ValueError(f"block={self.block}: give 1 (sequential), more, or None (one tree)")

    def round(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Rounds to the format. Also emulates any function that float32 computes: `round(jnp.exp(x))`."""
        return self.format.round(x)

    def add(self, a: Float[Array, "..."], b: Float[Array, "..."] | float) -> Float[Array, "..."]:
        return self.round(a + b)

    def subtract(self, a: Float[Array, "..."], b: Float[Array, "..."] | float) -> Float[Array, "..."]:
        return self.round(a - b)

    def multiply(self, a: Float[Array, "..."], b: Float[Array, "..."] | float) -> Float[Array, "..."]:
        return self.round(a * b)

    def divide(self, a: Float[Array, "..."] | float, b: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.round(a / b)

    def sqrt(self, a: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.round(jnp.sqrt(a))

    def rsqrt(self, a: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns 1 / sqrt(a), rounded once."""
        return self.round(1.0 / jnp.sqrt(a))

    def power_of_two_below(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the largest power of two that is at most x, for x > 0."""
        bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)  # the exponent
        return lax.bitcast_convert_type(bits, jnp.float32)

    def power_of_two_above(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the smallest power of two that is at least x, for x > 0."""
        below = self.power_of_two_below(x)
        return jnp.where(below == x, below, 2 * below)

    def sum(self, x: Float[Array, "..."], axis: int = -1, *, keepdims: bool = False) -> Float[Array, "..."]:
        """Returns the sum along an axis, each partial sum rounded to the accumulation format. An empty sum is 0."""
        x = jnp.moveaxis(x, axis, 0)
        partial = self._partial
        if x.shape[0] == 0:
            total = jnp.zeros(x.shape[1:])
        elif self.block is None or self.block >= x.shape[0]:
            total = _tree(partial.round(x), partial)
        else:
            blocks = _blocks(partial.round(x), self.block)
            total = _scan(blocks, lambda block: _tree(block, partial), partial)
        total = self.round(total)
        return jnp.expand_dims(total, axis) if keepdims else total

    def depth(self, count: int) -> int:
        """Returns d, the most additions that one of `count` addends goes through, by itself or in a partial sum.

        The error of a sum is at most ((1 + u)^d - 1) sum |x|, u the unit roundoff, where nothing overflows (Higham,
        2002, section 4.2). Sums that are subnormal are exact.
        """
        block = min(self.block or count, count)
        return math.ceil(count / block) - 1 + math.ceil(math.log2(block))

    def matmul(
        self, a: Float[Array, "*batch rows inner"], b: Float[Array, "*#batch inner columns"]
    ) -> Float[Array, "*batch rows columns"]:
        """Returns a b. Each product of elements and each partial sum is rounded to the accumulation format."""
        if b.ndim > 2:
            b = jnp.broadcast_to(b, (*a.shape[:-2], *b.shape[-2:]))
            flat = lax.map(
                lambda pair: self.matmul(*pair), (a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]))
            )
            return flat.reshape(*a.shape[:-1], b.shape[-1])
        partial = self._partial
        rows, block = a.reshape(-1, a.shape[-1]), min(self.block or len(b), len(b))

        def product(pair: tuple[Array, Array]) -> Array:  # (block, rows) and (block, columns) -> (rows, columns)
            return _tree(partial.round(pair[0][:, :, None] * pair[1][:, None, :]), partial)

        def tile(rows: Array) -> Array:
            return _scan((_blocks(rows.T, block), _blocks(b, block, fill=0.0)), product, partial)

        size = max(1, _TILE // (block * b.shape[1]))
        whole = rows.shape[0] // size * size
        tiles = [lax.map(tile, rows[:whole].reshape(-1, size, rows.shape[1])).reshape(whole, -1)] if whole else []
        tiles += [tile(rows[whole:])] if whole < rows.shape[0] else []
        return self.round(jnp.concatenate(tiles)).reshape(*a.shape[:-1], b.shape[1])

    @property
    def _partial(self) -> Format:
        return self.accumulation or self.format


def _tree(x: Array, format: Format) -> Array:
    """Returns the sum over the first axis, by halves.

    Without the barriers, XLA computes the addends again at every level of the tree, and the sum at every use: 20 times
    slower, and minutes to compile where a level is odd.
    """
    x = lax.optimization_barrier(x)
    while (count := x.shape[0]) > 1:
        half = (count + 1) // 2
        pairs = format.round(x[: count - half] + x[half:])
        odd = count % 2 == 1
        x = lax.optimization_barrier(jnp.concatenate([pairs, x[count - half : half]])) if odd else pairs
    return lax.optimization_barrier(x[0])


def _blocks(x: Array, block: int, fill: float = -0.0) -> Array:
    """Returns x as (blocks, block, ...). The last block is filled with -0, which changes no sum, not even of zeros."""
    padding = -x.shape[0] % block
    x = jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)
    return x.reshape(-1, block, *x.shape[1:])


def _scan(blocks, summed, format: Format) -> Array:
    """Returns the total of `summed(block)` over the blocks, added one after another."""
    first = summed(jax.tree.map(lambda x: x[0], blocks))
    rest = jax.tree.map(lambda x: x[1:], blocks)
    return lax.scan(lambda total, block: (format.round(total + summed(block)), None), first, rest)[0]
