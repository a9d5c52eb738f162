"""The public functions; they pick the implementation."""

import jax.numpy as jnp

from kernels.implementation import Unsupported, deferred, dispatch
from kernels.layer_norm import reference
from kernels.layer_norm.faithful import NormNumerics, normalise
from kernels.layer_norm.form import FORMATS, Form
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
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
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
        scale, bias: one value a channel.
        eps: added to the variance, in the squared unit of x.
        pre_normaliser: divides rows before they are squared: the same result, also for elements beyond 1e18.
        numerics: a device's arithmetic, emulated operation by operation (not differentiable), with its pre-normaliser.
            None is the definition in float32: fast, differentiable, and what a stabilised device computes up to its
            rounding (`docs/numerics.md` bounds it).
        axis: of the channels: the last, or 1 where the channels stand first.
        implementation: "reference", "xla", "mosaic_gpu", "mosaic_tpu", or None for what was measured to be the fastest
            on this device (`kernels.implementation`). With numerics, or another axis than the last, the
            kernels are of no use.

    Raises:
        ValueError: shapes, formats or settings that do not fit.
        Unsupported: the named implementation cannot run on this device or with these arguments.
    """
    if numerics is None:
        return _normalise(x, None, scale, bias, Form(eps, True, pre_normaliser, axis), implementation)[0]
    arithmetic = numerics.arithmetic
    normalised = _emulated(jnp.moveaxis(x, axis, -1), Form(eps, True, pre_normaliser), numerics, implementation)
    scaled = arithmetic.multiply(normalised, arithmetic.round(scale))
    return jnp.moveaxis(arithmetic.add(scaled, arithmetic.round(bias)), -1, axis)


def add_layer_norm(
    x: Float[Array, "*batch channels"],
    residual: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
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
    y, total = _normalise(x, residual, scale, bias, Form(eps, True, pre_normaliser), implementation)
    assert total is not None
    return y, total


def rms_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
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
    if numerics is None:
        return _normalise(x, None, scale, None, Form(eps, False, pre_normaliser), implementation)[0]
    normalised = _emulated(x, Form(eps, False, pre_normaliser), numerics, implementation)
    return numerics.arithmetic.multiply(normalised, numerics.arithmetic.round(scale))


def _normalise(
    x: Array, residual: Array | None, scale: Array, bias: Array | None, form: Form, implementation: str | None
) -> tuple[Array, Array | None]:
    if jnp.dtype(x.dtype).name not in FORMATS:
        raise ValueError(f"layer_norm: x is {x.dtype}, not one of {', '.join(FORMATS)}: cast it")
    for name, parameter in {"scale": scale, "bias": bias}.items():
        if parameter is not None and parameter.shape != (x.shape[form.axis],):
            raise ValueError(f"layer_norm: {name} of shape {parameter.shape} does not fit x of shape {x.shape}")
    if form.eps < 0:
        raise ValueError(f"layer_norm: eps={form.eps} must not be negative")
    if form.axis != -1:
        if implementation not in (None, "reference", "xla"):
            raise Unsupported(f"layer_norm: axis={form.axis} is not the last, which kernels need: use 'xla'")
        implementation = "xla"
    return dispatch("layer_norm", IMPLEMENTATIONS, implementation, x, residual, scale, bias, form)


def _emulated(x: Array, form: Form, numerics: NormNumerics, implementation: str | None) -> Array:
    if form.pre_normaliser != NONE:
        raise ValueError("layer_norm: give pre_normaliser to NormNumerics, where there is a numerics")
    if implementation not in (None, "reference", "xla"):
        raise Unsupported(f"layer_norm: implementation={implementation!r} emulates no numerics: use 'xla', or None")
    return normalise(x, form.eps, numerics, centred=form.centred)
