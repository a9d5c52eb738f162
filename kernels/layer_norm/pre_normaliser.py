"""Pre-normalisers: scales that keep the sum of a row's powers inside a narrow format.

A row c of width D is divided by a scale s. Then its elements are raised to the power p, 2 in layer normalisation, and
added up. s is made of two statistics that overflow later than that sum, the mean absolute deviation (MAD) and the
maximum:

    MAD = mean |c_i|,  max = max |c_i|,  s = k MAD^t max^(1 - t),  T = sum |c_i / s|^p

`docs/numerics.md` derives the bounds of T. It also proves that t = 1/p makes the smallest s that is safe for every row.
"""

import dataclasses
import math

SURROGATES = ("none", "max", "mad", "geometric")


@dataclasses.dataclass(frozen=True)
class PreNormaliser:
    """The scale that a row is divided by before it is squared.

    Args:
        surrogate: what stands in for the norm of the row: "none" (s = 1), "max" (t = 0), "mad" (t = 1) or "geometric"
            (t = 1/p; for p = 2 the geometric mean of MAD and maximum). Others are a ValueError.
        optimal: whether k is the smallest constant that keeps T within a limit for every row; otherwise k = 1.
        power_of_two: whether s is rounded up to a power of two, so that dividing by it is exact.
        safe_statistics: whether the row is first multiplied by a power of two that puts its largest element between
            M / 4D and M / 2D, M the format's largest value. Then neither mean nor MAD overflows, and small rows do not
            underflow. The mean is kept between the row's smallest and largest element, so that a constant row becomes
            exactly zero. A second subtraction removes what the rounding of the mean left.
        static: a power of two that every row is divided by at the start; the function `static` finds it offline. It
            costs nothing where it is folded into the weights of the layer before. Other numbers are a ValueError.
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
        """Returns k: if optimal, the smallest for which T <= limit for every row, else 1. Arguments as in `bounds`."""
        if self.surrogate == "none" or not self.optimal:
            return 1.0
        return (self._bare_bounds(width, p, centred)[1] / limit) ** (1 / p)

    def bounds(self, width: int, limit: float, *, p: float = 2.0, centred: bool = True) -> tuple[float, float]:
        """Returns the smallest and the largest T of any row that is not zero, in exact arithmetic.

        Args:
            width: D, elements of a row.
            limit: the largest T that the optimal constant allows.
            p: the power, at least 1.
            centred: whether the elements add up to zero (LayerNorm, not RMSNorm): "mad" and "max" are then tighter.
        """
        lower, upper = self._bare_bounds(width, p, centred)
        factor = self.constant(width, limit, p=p, centred=centred) ** p
        return lower / factor / (2**p if self.power_of_two else 1), upper / factor

    def spread(self, width: int, *, p: float = 2.0, centred: bool = True) -> float:
        """Returns the largest T over the smallest: the part of the format's range that the shapes of rows take up."""
        lower, upper = self.bounds(width, 1.0, p=p, centred=centred)
        return upper / lower if lower else math.inf

    def _bare_bounds(self, width: int, p: float, centred: bool) -> tuple[float, float]:
        """Returns the smallest and the largest T for k = 1."""
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
    """Returns v of the row (1, v, ..., v) with the smallest sum |c|^p / (MAD max^(p-1)).

    v is the root in [0, 1] of (p - 1) (D - 1) v^p + p v^(p-1) = 1. For p = 2 it is 1 / (1 + sqrt(D)).
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
    """Returns the static pre-normaliser that keeps T <= limit for rows of Euclidean norm up to `largest_norm`.

    It guarantees nothing for other rows. The norm comes from data (the largest seen, times a margin) or from weights
    (SLaNC; Salmani and Soloveychik, 2024): the output W x + b of a linear layer behind a normalisation has norm at most
    |W| sqrt(D) + |b| for every input, |W| being the spectral norm. Centring makes no norm larger.
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
