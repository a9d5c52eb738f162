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

    Values of the format are carried in float32 arrays, which hold each of them exactly; `round` makes such an array
    from any other, and `x.astype(format.name)` stores one without loss.

    Args:
        name: its NumPy name, one of `kernels.formats.STORED`.
        flush_to_zero: results that are subnormal become zero, as on hardware that has none; "subnormal" is decided
            after rounding with an unbounded exponent (IEEE 754, 7.5 a). float32 and bfloat16, whose subnormals are
            float32's, follow the machine instead: XLA flushes them on CPU and TPU.
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
        """M, the largest finite value."""
        return float(self._info.max)

    @property
    def smallest_normal(self) -> float:
        return float(self._info.smallest_normal)

    @property
    def smallest(self) -> float:
        """The smallest positive value: of the subnormals, unless they are flushed."""
        return self.smallest_normal if self.flush_to_zero else float(self._info.smallest_subnormal)

    @property
    def mantissa_bits(self) -> int:
        """Stored bits of the mantissa, the implicit one not counted."""
        return int(self._info.nmant)

    @property
    def unit_roundoff(self) -> float:
        """u: rounding a value in the normal range errs by at most the factor 1 + u."""
        return 2.0 ** -(self.mantissa_bits + 1)

    def round(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The nearest values of the format, ties to even, in float32.

        Beyond the largest value the result is infinite, or NaN in float8_e4m3fn, which has no infinity. No pass of
        XLA may drop it, as the simplifier may drop a cast to a narrow format and back (`xla_allow_excess_precision`).
        """
        x = x.astype(jnp.float32)
        if self.name == "float32":
            return x
        no_infinity = self.name == "float8_e4m3fn"
        # The exponent that IEEE 754 reserves for infinity is an ordinary one there: round with a wider exponent.
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
