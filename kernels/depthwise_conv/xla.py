"""The reference with its own gradient: automatic differentiation would keep a copy of the input for every tap."""

import functools
import math

import jax
import jax.numpy as jnp

from kernels.depthwise_conv import reference
from kernels.typing import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """See `api.depthwise_conv`."""
    return reference.depthwise_conv(x, kernel, strides)


def _forward(x: Array, kernel: Array, strides: tuple[int, ...]):
    return reference.depthwise_conv(x, kernel, strides), (x, kernel)


def _backward(strides: tuple[int, ...], residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    if set(strides) == {1} and x.shape[-1] == kernel.shape[-1]:
        # At stride 1 the gradient of x is a convolution too: of the padded cotangent with the reversed kernel.
        margin = [(0, 0), *((width - 1, width - 1) for width in kernel.shape[:-1]), (0, 0)]
        turned = jnp.flip(kernel, range(kernel.ndim - 1))
        x_gradient = reference.depthwise_conv(jnp.pad(cotangent, margin), turned, strides)
    else:
        _, transpose = jax.vjp(lambda x: reference.depthwise_conv(x, kernel, strides), x)
        (x_gradient,) = transpose(cotangent)
    on_cpu = functools.partial(_by_product if x.shape[-1] < kernel.shape[-1] else _by_frame, kernel.shape, strides)
    correlate = functools.partial(_correlate, kernel.shape, strides)
    kernel_gradient = jax.lax.platform_dependent(x, cotangent, cpu=on_cpu, default=correlate)
    return x_gradient, kernel_gradient


def _correlate(shape: tuple[int, ...], strides: tuple[int, ...], x: Array, cotangent: Array) -> Array:
    """Returns the gradient of the kernel by its definition: for each tap, the sum of its window times the cotangent."""
    windows = reference.windows(x.shape[1:-1], shape[:-1], strides)
    products = [jnp.sum(x[:, *window] * cotangent, axis=range(x.ndim - 1)) for _, window in windows]
    return jnp.stack(products).reshape(shape)


def _by_frame(shape: tuple[int, ...], strides: tuple[int, ...], x: Array, cotangent: Array) -> Array:
    """Computes `_correlate` frame by frame: a window of frames stays in the cache for all taps; sums are vectors."""
    windows = [window for _, window in reference.windows((shape[0], *x.shape[2:-1]), shape[:-1], strides)]

    def add(frame, totals):
        frames = jax.lax.dynamic_slice_in_dim(x, frame * strides[0], shape[0], axis=1)
        outputs = jax.lax.dynamic_slice_in_dim(cotangent, frame, 1, axis=1)
        return tuple(total + frames[:, *window] * outputs for total, window in zip(totals, windows, strict=True))

    zeros = jnp.zeros_like(cotangent[:, :1])
    totals = jax.lax.fori_loop(0, cotangent.shape[1], add, (zeros,) * len(windows))
    return jnp.sum(jnp.stack(totals), axis=range(1, x.ndim)).reshape(shape)


def _by_product(shape: tuple[int, ...], strides: tuple[int, ...], x: Array, cotangent: Array) -> Array:
    """Computes `_correlate` for one input channel as a matrix product: its windows, few, are laid side by side."""

    def add(total, utterance):
        x, cotangent = utterance
        windows = [x[(*window, 0)] for _, window in reference.windows(x.shape[:-1], shape[:-1], strides)]
        rows = jnp.stack(windows).reshape(len(windows), -1)
        return total + rows @ cotangent.reshape(-1, shape[-1]), None

    total = jnp.zeros((math.prod(shape[:-1]), shape[-1]), x.dtype)
    return jax.lax.scan(add, total, (x, cotangent))[0].reshape(shape)


depthwise_conv.defvjp(_forward, _backward)
