"""Normalisation in a device's own arithmetic: the result of every operation is rounded."""

import dataclasses
import math

import jax.numpy as jnp

from kernels.emulator import FLOAT16, Arithmetic
from kernels.layer_norm.pre_normaliser import GEOMETRIC, NONE, PreNormaliser
from kernels.typing import Array, Float

_ENOUGH = 2.0**16  # the part of a wider format that is used: more gains nothing


@dataclasses.dataclass(frozen=True)
class NormNumerics:
    """How a low-precision device normalises.

    Args:
        arithmetic: its format and order of summation.
        pre_normaliser: the scale that keeps the sum of squares in range.
    """

    arithmetic: Arithmetic = dataclasses.field(default_factory=lambda: Arithmetic(FLOAT16))
    pre_normaliser: PreNormaliser = GEOMETRIC

    @property
    def largest(self) -> float:
        """Returns M, the largest value of the format that is used."""
        return min(self.arithmetic.format.largest, _ENOUGH)

    @property
    def limit(self) -> float:
        """Returns M / 4, the largest sum of squares that optimal constants allow. The rest is room for rounding."""
        return self.largest / 4

    def error_bound(self, width: int) -> float:
        """Returns (2.5 d + 11) u, to first order the largest |error| / |result| of a normalised row (Euclidean norms).

        d is the depth of a sum over the row, u the format's unit roundoff. The bound holds for safe statistics, optimal
        scales, gradual underflow, and rows whose mean is less than 1 / ((d + 1) u) standard deviations. Errors behave
        as if random, and are about a tenth of it (`docs/numerics.md`).
        """
        return (2.5 * self.arithmetic.depth(width) + 11) * self.arithmetic.format.unit_roundoff


def standardise(
    x: Float[Array, "*batch channels"], eps: float, numerics: NormNumerics, *, centred: bool
) -> Float[Array, "*batch channels"]:
    """Returns (x - mean) / sqrt(mean (x - mean)^2 + eps), the result of each operation rounded to the format.

    Dividing the centred row c by its scale s changes the range alone, and keeps eps exactly. With y = c / s,

        c / sqrt(mean c^2 + eps) = y / sqrt(mean y^2 + eps / s^2),    s >= f.

    f, the power of two above sqrt(D eps / limit), keeps the second term in range. A constant row gives zeros. The
    result is made of z = c / 2^k, 2^k being the power of two above s: this division is exact. y = h z, with h = 2^k / s
    between 1 and 2, is for the sum of squares alone, so that no element is divided by s, and the rounding of h cancels.

    Args:
        eps: above zero, in the squared unit of x.
        centred: whether the mean is subtracted (LayerNorm) or taken to be zero (RMSNorm).

    Raises:
        ValueError: eps is not above zero, or a static scale is below f.
    """
    if eps <= 0:
        raise ValueError(f"eps={eps}: low precision needs a positive one, or constant rows divide zero by zero")
    arithmetic, pre_normaliser, width = numerics.arithmetic, numerics.pre_normaliser, x.shape[-1]
    x = arithmetic.round(x)
    if pre_normaliser == NONE:
        return _by_definition(x, eps, arithmetic, centred)
    floor = 2.0 ** math.ceil(math.log2(math.sqrt(width * eps / numerics.limit)))  # f, in the unit of x
    shift = jnp.float32(1 / pre_normaliser.static)  # a power of two
    if pre_normaliser.safe_statistics:
        largest = _largest(jnp.abs(x))
        shift = arithmetic.power_of_two_below(numerics.largest / (2 * width) / jnp.maximum(largest, floor))
    elif pre_normaliser.surrogate == "none" and pre_normaliser.static < floor:
        raise ValueError(f"static={pre_normaliser.static}: make it {floor} or more, or the term of eps={eps} overflows")
    c = arithmetic.multiply(x, shift)
    if centred:
        c = _centre(c, pre_normaliser.safe_statistics, arithmetic)
    z, h, ratio = _scaled(c, arithmetic.round(shift * floor), numerics, centred)
    y = arithmetic.multiply(z, h)
    variance = _over_width(arithmetic.sum(arithmetic.multiply(y, y), keepdims=True), width, arithmetic)
    variance = arithmetic.divide(variance, arithmetic.multiply(h, h))
    # In this order, because ratio^2 would underflow long before the term does.
    eps_term = arithmetic.multiply(ratio, arithmetic.multiply(ratio, arithmetic.round(jnp.float32(eps / floor**2))))
    variance = arithmetic.add(variance, eps_term)
    # Both are zero where a row is constant and so large that its eps is flushed.
    return arithmetic.multiply(z, arithmetic.rsqrt(jnp.maximum(variance, arithmetic.format.smallest)))


def _scaled(
    c: Float[Array, "*batch channels"], floor: Float[Array, "..."], numerics: NormNumerics, centred: bool
) -> tuple[Float[Array, "*batch channels"], Float[Array, "..."], Float[Array, "..."]]:
    """Returns c / 2^k, h = 2^k / s (1 where s is rounded to a power of two) and floor / 2^k; see `standardise`."""
    arithmetic, pre_normaliser, width = numerics.arithmetic, numerics.pre_normaliser, c.shape[-1]
    one = jnp.float32(1)
    if pre_normaliser.surrogate == "none":
        return c, one, floor
    magnitude = jnp.abs(c)
    k = pre_normaliser.constant(width, numerics.limit, centred=centred)
    # s comes from the sum of |c|, which is D MAD: a division of it by D could underflow.
    if pre_normaliser.surrogate == "max":
        s = _largest(magnitude)
    elif pre_normaliser.surrogate == "mad":
        s, k = arithmetic.sum(magnitude, keepdims=True), k / width
    else:
        largest = _largest(magnitude)
        total = arithmetic.sum(magnitude, keepdims=True)
        # Roots first, because the product may overflow.
        s, k = arithmetic.multiply(arithmetic.sqrt(total), arithmetic.sqrt(largest)), k / math.sqrt(width)
    s = arithmetic.multiply(s, arithmetic.round(jnp.float32(k)))
    s = jnp.maximum(jnp.maximum(s, floor), arithmetic.format.smallest_normal)
    above = arithmetic.power_of_two_above(s)
    h = one if pre_normaliser.power_of_two else arithmetic.divide(one, arithmetic.divide(s, above))
    return arithmetic.divide(c, above), h, arithmetic.divide(floor, above)


def _centre(x: Array, safely: bool, arithmetic: Arithmetic) -> Array:
    """Returns x - mean(x). With `safely`, subtracts what the rounding of the mean left as well."""
    mean = _over_width(arithmetic.sum(x, keepdims=True), x.shape[-1], arithmetic)
    if not safely:
        return arithmetic.subtract(x, mean)
    # Keeps a rounded mean between the extremes, so that a constant row has an exact one.
    mean = jnp.clip(mean, -_largest(-x), _largest(x))
    x = arithmetic.subtract(x, mean)
    return arithmetic.subtract(x, _over_width(arithmetic.sum(x, keepdims=True), x.shape[-1], arithmetic))


def _by_definition(x: Array, eps: float, arithmetic: Arithmetic, centred: bool) -> Array:
    """Computes the formula as it is written, with no scale."""
    if centred:
        x = _centre(x, False, arithmetic)
    squares = arithmetic.sum(arithmetic.multiply(x, x), keepdims=True)
    variance = _over_width(squares, x.shape[-1], arithmetic)
    return arithmetic.multiply(x, arithmetic.rsqrt(arithmetic.add(variance, arithmetic.round(jnp.float32(eps)))))


def _largest(x: Array) -> Array:
    """Returns the largest element of each row, (..., 1)."""
    return jnp.max(x, axis=-1, keepdims=True)


def _over_width(x: Array, width: int, arithmetic: Arithmetic) -> Array:
    """Returns x / D. D = m 2^n may be beyond the format, so this divides by m, 1 <= m < 2, and then by 2^n."""
    shift = math.floor(math.log2(width))
    quotient = arithmetic.divide(x, arithmetic.round(jnp.float32(width / 2**shift)))
    return arithmetic.multiply(quotient, 2.0**-shift)
