"""Pre-normalisers: scales that keep a sum of powers inside a narrow format, whatever the row.

A row c of width D is divided by a scale s before its elements are raised to the power p and added (p = 2 in layer
normalisation). s is made of two statistics that overflow later than that sum, the mean absolute deviation (MAD) and
the maximum:

    MAD = mean |c_i|,  max = max |c_i|,  s = k MAD^t max^(1 - t),  T = sum |c_i / s|^p

`docs/numerics.md` derives the bounds of T, and proves that no safe function of the two statistics is smaller than the
one with t = 1/p.
"""

import dataclasses
import math

SURROGATES = ("none", "max", "mad", "geometric")


@dataclasses.dataclass(frozen=True)
class PreNormaliser:
    """The scale that a row is divided by before it is squared.

    Args:
        surrogate: what stands in for the norm of the row: "none" (s = 1), "max" (t = 0), "mad" (t = 1) or "geometric"
            (t = 1/p, at p = 2 the geometric mean of the two).
        optimal: k is the smallest constant for which T never exceeds a limit; otherwise k = 1.
        power_of_two: s is rounded up to a power of two, so that dividing by it is exact.
        safe_statistics: the row is first multiplied by an exact power of two that brings its largest element to between
            M / 4D and M / 2D, M the format's largest value: neither the mean nor the MAD can then overflow, nor do
            small rows underflow. The mean is kept between the row's extremes, so that a constant row becomes exactly
            zero, and what rounding left of it is subtracted too.
        static: a power of two, found offline (`static`), that every row is divided by at the start. It costs nothing
            where it is folded into the weights of the layer before.
    """

    surrogate: str = "geometric"
    optimal: bool = True
    power_of_two: bool = False
    safe_statistics: bool = True
    static: float = 1.0

    def __post_init__(self):
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate={self.surrogate!r} is not one of {', '.join(SURROGATES)}")
        if self.static <= 0 or math.frexp(self.static)[0] != 0.5:
            raise ValueError(f"static={self.static} is not a power of two: make it with static(largest_norm, limit)")

    def constant(self, width: int, limit: float, *, p: float = 2.0, centred: bool = True) -> float:
        """k: the smallest for which T <= limit for every row, or 1."""
        if self.surrogate == "none" or not self.optimal:
            return 1.0
        return (self._bare_bounds(width, p, centred)[1] / limit) ** (1 / p)

    def bounds(self, width: int, limit: float, *, p: float = 2.0, centred: bool = True) -> tuple[float, float]:
        """The range of T in exact arithmetic, over all rows but zero.

        Args:
            width: D, elements of a row.
            limit: what the optimal constant keeps T below.
            p: the power, at least 1.
            centred: the elements add up to zero (LayerNorm; not RMSNorm), for which "mad" and "max" are tighter.
        """
        lower, upper = self._bare_bounds(width, p, centred)
        factor = self.constant(width, limit, p=p, centred=centred) ** p
        return lower / factor / (2**p if self.power_of_two else 1), upper / factor

    def spread(self, width: int, *, p: float = 2.0, centred: bool = True) -> float:
        """Largest over smallest T: how much of the format's range the shape of a row decides about."""
        lower, upper = self.bounds(width, 1.0, p=p, centred=centred)
        return upper / lower if lower else math.inf

    def _bare_bounds(self, width: int, p: float, centred: bool) -> tuple[float, float]:
        """The range of T for k = 1."""
        if p < 1 or width < 2:
            raise ValueError(f"p={p}, width={width}: the bounds hold for powers and widths from 1 and 2 on")
        match self.surrogate:
            case "mad":
                return float(width), width**p * (2 ** (1 - p) if centred else 1.0)
            case "max":
                return 1 + ((width - 1) ** (1 - p) if centred else 0.0), float(width)
            case "geometric":
                return width * p * _flattest(width, p) ** (p - 1), float(width)
            case _:
                return 0.0, math.inf


def _flattest(width: int, p: float) -> float:
    """The value v of all elements but one, which is 1, for which sum |c|^p / (MAD max^(p-1)) is smallest.

    The root in [0, 1] of (p - 1) (D - 1) v^p + p v^(p-1) = 1; for p = 2, 1 / (1 + sqrt(D)).
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if (p - 1) * (width - 1) * middle**p + p * middle ** (p - 1) < 1:
            low = middle
        else:
            high = middle
    return high


def static(largest_norm: float, limit: float) -> PreNormaliser:
    """The static pre-normaliser for rows whose Euclidean norm, centred or not, never exceeds `largest_norm`.

    The guarantee is conditional: T <= limit for these rows. The norm comes from data (the largest seen, times a
    margin) or from weights, after SLaNC (Salmani and Soloveychik, 2024): a linear layer W x + b behind a normalisation
    has norm at most |W| sqrt(D) + |b| for every input, with |W| the spectral norm.
    """
    return PreNormaliser(
        "none", safe_statistics=False, static=2.0 ** math.ceil(math.log2(largest_norm / math.sqrt(limit)))
    )


NONE = PreNormaliser("none", safe_statistics=False)  # the definition, operation by operation
PLAIN_MAD = PreNormaliser("mad", optimal=False, safe_statistics=False)  # Xu et al. (2024)
PLAIN_MAX = PreNormaliser("max", optimal=False, safe_statistics=False)
OPTIMAL_MAD = PreNormaliser("mad")
OPTIMAL_MAX = PreNormaliser("max")
GEOMETRIC = PreNormaliser()
