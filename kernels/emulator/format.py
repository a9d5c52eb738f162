"""Floating-point formats, and rounding to them."""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax

from kernels.formats import STORED
from kernels.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Format:
    """A floating-point format, no wider than float32.

    Its values are kept in float32 arrays, which hold each of them exactly. `round` makes such an array from any other;
    `x.astype(format.name)` stores one without loss.

    Args:
        name: its name in NumPy, one of `kernels.formats.STORED`; others are a ValueError.
        flush_to_zero: whether subnormal results become zero, as on hardware that has none. A result is subnormal if it
            is so after rounding with an unbounded exponent (IEEE 754, 7.5 a). For float32 and bfloat16, which have the
            exponents of float32, the machine decides instead: XLA flushes them on CPU and TPU.
    """

    name: str
    flush_to_zero: bool = False

    def __post_init__(self):
        if self.name not in STORED:
            raise ValueError(f"format {self.name!r} is not one of {', '.join(STORED)}")

    @functools.cached_property
    def _info(self):
        return jnp.finfo(self.name)

    @property
    def largest(self) -> float:
        """Returns M, the largest finite value."""
        return float(self._info.max)

    @property
    def smallest_normal(self) -> float:
        return float(self._info.smallest_normal)

    @property
    def smallest(self) -> float:
        """Returns the smallest positive value: a subnormal, unless they are flushed."""
        return self.smallest_normal if self.flush_to_zero else float(self._info.smallest_subnormal)

    @property
    def mantissa_bits(self) -> int:
        """Returns the number of stored bits of the mantissa, without the implicit one."""
        return int(self._info.nmant)

    @property
    def unit_roundoff(self) -> float:
        """Returns u, the largest relative error of rounding a value in the normal range."""
        return 2.0 ** -(self.mantissa_bits + 1)

    def round(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the nearest values of the format, ties to even, in float32.

        Beyond the largest value the result is infinite, or NaN in float8_e4m3fn, which has no infinity. XLA may drop a
        cast to a narrow format and back (`xla_allow_excess_precision`); it keeps this rounding.
        """
        x = x.astype(jnp.float32)
        if self.name == "float32":
            return x
        no_infinity = self.name == "float8_e4m3fn"
        # There the exponent that IEEE 754 reserves for infinity holds ordinary values: round with a wider exponent.
        exponent_bits = 8 if no_infinity else int(self._info.nexp)
        rounded = lax.reduce_precision(x, exponent_bits, self.mantissa_bits)  # flushes subnormals
        if no_infinity:
            rounded = jnp.where(jnp.abs(rounded) > self.largest, jnp.nan, rounded)
        if self.flush_to_zero:
            return jnp.where(jnp.abs(rounded) < self.smallest_normal, 0.0 * x, rounded) if no_infinity else rounded
        if self.smallest_normal == float(jnp.finfo(jnp.float32).smallest_normal):
            return rounded
        subnormal = lax.round(x / self.smallest, lax.RoundingMethod.TO_NEAREST_EVEN) * self.smallest
        return jnp.where(jnp.abs(x) < self.smallest_normal, subnormal, rounded)


FLOAT32 = Format("float32")
BFLOAT16 = Format("bfloat16")
FLOAT16 = Format("float16")
FLOAT8_E4M3FN = Format("float8_e4m3fn")
FLOAT8_E5M2 = Format("float8_e5m2")
