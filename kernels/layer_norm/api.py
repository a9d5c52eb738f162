"""The public functions; they pick the implementation."""

import jax.numpy as jnp

from kernels.layer_norm import reference
from kernels.layer_norm.faithful import NormNumerics, normalise
from kernels.typing import Array, Float


def layer_norm(
    x: Float[Array, "*shape"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    *,
    eps: float = 1e-5,
    numerics: NormNumerics | None = None,
    axis: int = -1,
) -> Float[Array, "*shape"]:
    """Layer normalisation over one axis (Ba et al., 2016, eq. 4).

        y = (x - mean(x)) / sqrt(var(x) + eps) * scale + bias

    Args:
        x: input; every row along `axis`, of `channels` elements, is normalised by itself.
        scale, bias: one value a channel.
        eps: added to the variance, in the squared unit of x.
        numerics: a device's arithmetic, emulated operation by operation (not differentiable), with its pre-normaliser.
            None is the definition in x's own format: fast, differentiable, and in float32 what a stabilised device
            computes up to its rounding (`docs/numerics.md` bounds it).
        axis: of the channels: the last, or 1 where the channels stand first.
    """
    if numerics is None:
        return reference.layer_norm(x, scale, bias, eps, axis)
    if axis != -1:
        rows = layer_norm(jnp.moveaxis(x, axis, -1), scale, bias, eps=eps, numerics=numerics)
        return jnp.moveaxis(rows, -1, axis)
    arithmetic = numerics.arithmetic
    scaled = arithmetic.multiply(normalise(x, eps, numerics, centred=True), arithmetic.round(scale))
    return arithmetic.add(scaled, arithmetic.round(bias))


def rms_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
    *,
    eps: float = 1e-6,
    numerics: NormNumerics | None = None,
) -> Float[Array, "*batch channels"]:
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019, eq. 4).

        y = x / sqrt(mean(x^2) + eps) * scale

    Arguments as in `layer_norm`.
    """
    if numerics is None:
        return reference.rms_norm(x, scale, eps)
    arithmetic = numerics.arithmetic
    return arithmetic.multiply(normalise(x, eps, numerics, centred=False), arithmetic.round(scale))
