"""The public function; picks the implementation."""

from kernels.layer_norm import reference
from kernels.typing import Array, Float


def layer_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    *,
    eps: float = 1e-5,
) -> Float[Array, "*batch channels"]:
    """Layer normalisation over the last axis (Ba et al., 2016, eq. 4).

        y = (x - mean(x)) / sqrt(var(x) + eps) * scale + bias

    Args:
        x: input; every row along the last axis is normalised by itself.
        scale, bias: one value a channel.
        eps: added to the variance, in the squared unit of x.
    """
    return reference.layer_norm(x, scale, bias, eps)
