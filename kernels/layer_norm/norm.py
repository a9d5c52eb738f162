"""What a normalisation computes, apart from how."""

import dataclasses

from kernels.layer_norm.pre_normaliser import NONE, PreNormaliser


@dataclasses.dataclass(frozen=True)
class Norm:
    """y = c / sqrt(mean c^2 + eps) * scale + bias, c = x - mean(x) or, for RMSNorm, x itself.

    Computed in float32 whatever the format of x, with a pre-normaliser s from the statistics of c:

        y = z / sqrt(mean z^2 + eps / s^2) * scale + bias,    z = c / s.

    That is the same function, eps included; only sums that would overflow float32 (elements beyond 1e18) no longer do.
    Constants and powers of two in s matter to narrower sums alone (`faithful`), so here s is MAD, max or their
    geometric mean, and at least sqrt(eps), lest a constant row be 0 / 0.
    """

    eps: float
    centred: bool = True
    pre_normaliser: PreNormaliser = NONE
    axis: int = -1  # of the channels; kernels take the last alone

    @property
    def smallest_scale(self) -> float:
        """Of s, and positive if eps is zero."""
        return max(self.eps**0.5, 2.0**-60)
