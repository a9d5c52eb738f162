"""The public functions; they pick the implementation."""

import numbers

import jax.numpy as jnp

from kernels import formats
from kernels.implementation import Unsupported, deferred, dispatch
from kernels.layer_norm import reference
from kernels.layer_norm.faithful import NormNumerics, standardise
from kernels.layer_norm.norm import Norm
from kernels.layer_norm.pre_normaliser import NONE, PreNormaliser
from kernels.typing import Array, Float

IMPLEMENTATIONS = {
    "reference": reference.normalise,
    "xla": reference.normalise,  # which XLA fuses
    "mosaic_gpu": deferred("kernels.layer_norm.mosaic_gpu", "normalise"),
    "mosaic_tpu": deferred("kernels.layer_norm.mosaic_tpu", "normalise"),
}


def layer_norm(
    x: Float[Array, "*shape"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    *,
    eps: float = 1e-5,
    pre_normaliser: PreNormaliser = NONE,
    numerics: NormNumerics | None = None,
    axis: int = -1,
    implementation: str | None = None,
) -> Float[Array, "*shape"]:
    """Layer normalisation over one axis (Ba et al., 2016, eq. 4).

        y = (x - mean(x)) / sqrt(var(x) + eps) * scale + bias

    Args:
        x: input; every row along `axis` is normalised by itself, in float32, and the result has its format:
            float32, bfloat16, float16, float8_e4m3fn or float8_e5m2 (results beyond a float8 become its largest value).
        scale, bias: one value a channel; None is one, or zero.
        eps: added to the variance, in the squared unit of x; known before tracing.
        pre_normaliser: divides rows before they are squared: the same result, also for elements beyond 1e18.
        numerics: a device's arithmetic, emulated operation by operation (not differentiable), with its pre-normaliser.
            None is the definition in float32: fast, differentiable, and what a stabilised device computes up to its
            rounding (`docs/numerics.md` bounds it).
        axis: of the channels: the last, or 1 where the channels stand first.
        implementation: "reference", "xla", "mosaic_gpu", "mosaic_tpu", or None for what was measured to be the fastest
            on this device (`kernels.implementation`). The kernels take the last axis alone, and no numerics.

    Raises:
        ValueError: shapes, formats or settings that do not fit.
        Unsupported: the named implementation cannot run on this device or with these arguments.
    """
    norm = Norm(eps, True, pre_normaliser, -1 if axis == x.ndim - 1 else axis)
    if numerics is None:
        return _normalise(x, None, scale, bias, norm, implementation)[0]
    return _emulate(x, scale, bias, norm, numerics, implementation)


def add_layer_norm(
    x: Float[Array, "*batch channels"],
    residual: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    *,
    eps: float = 1e-5,
    pre_normaliser: PreNormaliser = NONE,
    implementation: str | None = None,
) -> tuple[Float[Array, "*batch channels"], Float[Array, "*batch channels"]]:
    """layer_norm(x + residual) and x + residual, rounded to the format of x, in one pass over the tensors.

    Arguments as in `layer_norm`; `residual` has the shape of x.
    """
    if x.shape != residual.shape:
        raise ValueError(f"residual of shape {residual.shape} cannot be added to x of shape {x.shape}")
    y, total = _normalise(x, residual, scale, bias, Norm(eps, True, pre_normaliser), implementation)
    assert total is not None
    return y, total


def rms_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"] | None,
    *,
    eps: float = 1e-6,
    pre_normaliser: PreNormaliser = NONE,
    numerics: NormNumerics | None = None,
    implementation: str | None = None,
) -> Float[Array, "*batch channels"]:
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019, eq. 4).

        y = x / sqrt(mean(x^2) + eps) * scale

    Arguments as in `layer_norm`.
    """
    norm = Norm(eps, False, pre_normaliser)
    if numerics is None:
        return _normalise(x, None, scale, None, norm, implementation)[0]
    return _emulate(x, scale, None, norm, numerics, implementation)


def _normalise(
    x: Array, residual: Array | None, scale: Array | None, bias: Array | None, norm: Norm, implementation: str | None
) -> tuple[Array, Array | None]:
    formats.check("layer_norm", "x", x, formats.STORED)
    _check(x, scale, bias, norm)
    if norm.axis != -1:
        if implementation not in (None, "reference", "xla"):
            raise Unsupported(f"layer_norm: axis={norm.axis} is not the last, which kernels need: use 'xla'")
        implementation = "xla"
    if x.size == 0:
        return x, residual
    scale = jnp.ones(x.shape[norm.axis]) if scale is None else scale
    return dispatch("layer_norm", IMPLEMENTATIONS, implementation, x, residual, scale, bias, norm)


def _emulate(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    norm: Norm,
    numerics: NormNumerics,
    implementation: str | None,
) -> Array:
    _check(x, scale, bias, norm)
    if norm.pre_normaliser != NONE:
        raise ValueError("layer_norm: give pre_normaliser to NormNumerics, where there is a numerics")
    if implementation not in (None, "reference", "xla"):
        raise Unsupported(f"layer_norm: implementation={implementation!r} emulates no numerics: use 'xla', or None")
    arithmetic, rows = numerics.arithmetic, jnp.moveaxis(x, norm.axis, -1)
    if x.size == 0:
        return x
    rows = standardise(rows, norm.eps, numerics, centred=norm.centred)
    rows = rows if scale is None else arithmetic.multiply(rows, arithmetic.round(scale))
    rows = rows if bias is None else arithmetic.add(rows, arithmetic.round(bias))
    return jnp.moveaxis(rows, -1, norm.axis)


def _check(x: Array, scale: Array | None, bias: Array | None, norm: Norm) -> None:
    for name, parameter in {"scale": scale, "bias": bias}.items():
        if parameter is not None and parameter.shape != (x.shape[norm.axis],):
            raise ValueError(f"layer_norm: {name} of shape {parameter.shape} does not fit x of shape {x.shape}")
    if not isinstance(norm.eps, numbers.Real):
        raise ValueError(f"layer_norm: eps={norm.eps} must be a number that is known before tracing")
    if norm.eps < 0:
        raise ValueError(f"layer_norm: eps={norm.eps} must not be negative")
