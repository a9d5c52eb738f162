"""Functions that are looked up in tables with a bounded domain, as on accelerators with few operators."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kernels.typing import Array, Float, Int

type Lookup = Callable[["Table", Array], Array]  # (table, indices) -> entries, as a device finds them


def take(table: "Table", index: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the entries at these indices."""
    return jnp.asarray(table.values)[index]


@dataclasses.dataclass(frozen=True)
class Table:
    """A function tabulated at the points low, low + step, ..., low + (entries - 1) step. Inputs outside are clipped.

    The largest error for a function f, with h = step (Taylor): h/2 max|f'| with the nearest entry, h^2/8 max|f''|
    interpolated. For exp the relative error is exp(h/2) - 1 or h^2/8.

    Args:
        function: maps float64 to float64.
        low: the first point, a multiple of `step`.
        step: a power of two, so that position and fraction are exact in any format that holds the input.
        entries: the number of points, at least 2. (Other values of the three are a ValueError.)
        interpolated: whether to interpolate linearly between two entries, or to take the nearest one.
    """

    function: Callable[[np.ndarray], np.ndarray]
    low: float
    step: float
    entries: int
    interpolated: bool = True

    def __post_init__(self):
        if math.frexp(self.step)[0] != 0.5 or (self.low / self.step) % 1:
            raise ValueError(f"low={self.low}, step={self.step}: give a power of two, and a multiple of it")
        if self.entries < 2:
            raise ValueError(f"entries={self.entries} must be at least 2")

    @property
    def high(self) -> float:
        """Returns the last point."""
        return self.low + self.step * (self.entries - 1)

    @functools.cached_property
    def values(self) -> np.ndarray:
        """Returns the entries, (entries,) in float32."""
        return self.function(self.low + self.step * np.arange(self.entries)).astype(np.float32)

    def __call__(self, x: Float[Array, "*shape"], lookup: Lookup = take) -> Float[Array, "*shape"]:
        """Returns the function of x, from the entries that `lookup` finds."""
        first = round(self.low / self.step)
        position = jnp.clip(x, self.low, self.high) / self.step
        if not self.interpolated:
            return lookup(self, jnp.round(position).astype(jnp.int32) - first)
        floor = position.astype(jnp.int32)  # rounds towards zero, which is corrected: not every kernel has a floor
        floor = jnp.minimum(jnp.where(floor > position, floor - 1, floor), first + self.entries - 2)
        low, high = lookup(self, floor - first), lookup(self, floor - first + 1)
        return low + (position - floor.astype(position.dtype)) * (high - low)


@dataclasses.dataclass(frozen=True)
class Exp:
    """exp(x) = 2^n exp(r) with |r| <= ln(2) / 2: sets an exponent, and takes exp(r) from a table.

    r = x - n ln 2 is computed in two steps (Cody and Waite, 1980). n times the first five bits of ln 2 is exact, and so
    is its difference from a nearby x. The fraction of x log2(e), the usual way, would lose as many bits as n has.
    """

    step: float = 2**-7
    interpolated: bool = True

    @functools.cached_property
    def table(self) -> Table:
        half = math.ceil(math.log(2) / 2 / self.step + 0.5)
        return Table(np.exp, -half * self.step, self.step, 2 * half + 1, self.interpolated)

    @property
    def entries(self) -> int:
        return self.table.entries

    @property
    def low(self) -> float:
        """Returns the x below which the result is zero. exp(-87) is just above 2^-126, float32's smallest normal."""
        return -87.0

    def __call__(
        self, x: Float[Array, "*shape"], headroom: Int[Array, "*#shape"] | int = 0, lookup: Lookup = take
    ) -> Float[Array, "*shape"]:
        """Returns exp(x) 2^headroom."""
        clipped = jnp.clip(x, self.low, 88.0)
        n = jnp.round(clipped * math.log2(math.e))
        rest = clipped - n * _LN2_HIGH - n * _LN2_LOW
        return jnp.where(x < self.low, 0.0, self.table(rest, lookup) * power_of_two(n.astype(jnp.int32) + headroom))


@dataclasses.dataclass(frozen=True)
class BoundedExp:
    """exp(x) from one table over the whole domain [low, high], for hardware that cannot set an exponent."""

    low: float = -12.0
    step: float = 2**-4
    entries: int = 256
    interpolated: bool = True

    @functools.cached_property
    def table(self) -> Table:
        return Table(np.exp, self.low, self.step, self.entries, self.interpolated)

    def __call__(
        self, x: Float[Array, "*shape"], headroom: Int[Array, "*#shape"] | int = 0, lookup: Lookup = take
    ) -> Float[Array, "*shape"]:
        """Returns exp(x): 0 below the domain, constant above it. Ignores `headroom`, which would set an exponent."""
        return jnp.where(x < self.low, 0.0, self.table(x, lookup))


@dataclasses.dataclass(frozen=True)
class _OfMantissa:
    """A function of x = m 2^e > 0, with 1 <= m < 2, that is looked up over [1, 2] alone: at m."""

    function: ClassVar[Callable[[np.ndarray], np.ndarray]]
    step: float
    interpolated: bool = True

    @functools.cached_property
    def table(self) -> Table:
        return Table(self.function, 1.0, self.step, round(1 / self.step) + 1, self.interpolated)

    @property
    def entries(self) -> int:
        return self.table.entries


@dataclasses.dataclass(frozen=True)
class Reciprocal(_OfMantissa):
    """1/x = 2^-e (1/m), with 1/m from a table. The relative error is that of 1/m, at most h^2/4 with h = step."""

    function = np.reciprocal
    step: float = 2**-7

    def times(self, numerator: Float[Array, "*shape"], x: Float[Array, "*#shape"]) -> Float[Array, "*shape"]:
        """Returns numerator / x. Scales last, because 1/x itself may be too small for the format."""
        reciprocal, scale = self.factors(x)
        return numerator * reciprocal * scale

    def factors(
        self, x: Float[Array, "*shape"], lookup: Lookup = take
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Returns two factors of 1/x: a number between 1/2 and 1, and a power of two."""
        mantissa, exponent = split(x)
        return self.table(mantissa, lookup), power_of_two(-exponent)


@dataclasses.dataclass(frozen=True)
class Logarithm(_OfMantissa):
    """ln(x) = e ln 2 + ln(m), with ln(m) from a table. The error is at most h^2/8 with h = step."""

    function = np.log
    step: float = 2**-5

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        mantissa, exponent = split(x)
        return exponent.astype(jnp.float32) * math.log(2) + self.table(mantissa)


_LN2_HIGH = 22 / 32  # five bits
_LN2_LOW = math.log(2) - _LN2_HIGH


def split(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Int[Array, "*shape"]]:
    """Returns m and e with x = m 2^e and 1 <= m < 2, for finite x > 0. For x = 0 it returns 1 and -127."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    mantissa = jax.lax.bitcast_convert_type((bits & 0x007FFFFF) | 0x3F800000, jnp.float32)
    return mantissa, (bits >> 23) - 127


def power_of_two(exponent: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns 2^exponent. Exponents are clipped to -126 ... 127."""
    return jax.lax.bitcast_convert_type((jnp.clip(exponent, -126, 127) + 127) << 23, jnp.float32)
