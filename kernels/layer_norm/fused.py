"""The normalisation of a kernel: rows laid flat, and a gradient that the kernel computes too."""

import functools
from typing import Any, NamedTuple, Protocol

import jax

from kernels.layer_norm.form import Form
from kernels.typing import Array, Float


class Forward(Protocol):
    """x (rows, channels), residual or None, scale, bias or None -> y and x + residual (None without one)."""

    def __call__(
        self, x: Array, residual: Array | None, scale: Array, bias: Array | None, form: Form
    ) -> tuple[Array, Array | None]: ...


class Backward(Protocol):
    """x + residual, scale, cotangents of y and of x + residual (or None) -> gradients of x, scale and bias."""

    def __call__(
        self, total: Array, scale: Array, cotangent: Array, passed: Array | None, form: Form
    ) -> tuple[Array, Array, Array]: ...


class Kernels(NamedTuple):
    """One pass over the rows each: what goes in is read once, what comes out is written once."""

    forward: Forward
    backward: Backward


def normalise(
    kernels: Kernels,
    x: Float[Array, "*batch channels"],
    residual: Float[Array, "*batch channels"] | None,
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"] | None,
    form: Form,
) -> tuple[Float[Array, "*batch channels"], Float[Array, "*batch channels"] | None]:
    """As `reference.normalise`."""
    flat = (-1, x.shape[-1])
    added = None if residual is None else residual.reshape(flat)
    results: Any = _normalise(kernels, x.reshape(flat), added, scale, bias, form)
    y, total = results
    return y.reshape(x.shape), None if total is None else total.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def _normalise(
    kernels: Kernels, x: Array, residual: Array | None, scale: Array, bias: Array | None, form: Form
) -> tuple[Array, Array | None]:
    return kernels.forward(x, residual, scale, bias, form)


def _forward(kernels: Kernels, x: Array, residual: Array | None, scale: Array, bias: Array | None, form: Form):
    y, total = kernels.forward(x, residual, scale, bias, form)
    return (y, total), (x if total is None else total, residual, scale, bias)


def _backward(kernels: Kernels, form: Form, residuals, cotangents):
    total, residual, scale, bias = residuals
    cotangent, passed = cotangents
    dx, dscale, dbias = kernels.backward(total, scale, cotangent, passed, form)
    return (
        dx,
        None if residual is None else dx.astype(residual.dtype),
        dscale.astype(scale.dtype),
        None if bias is None else dbias.astype(bias.dtype),
    )


_normalise.defvjp(_forward, _backward)
