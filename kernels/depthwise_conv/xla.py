"""The reference with a gradient of its own: automatic differentiation would keep a copy of the input for every tap."""

import functools

import jax
import jax.numpy as jnp

from kernels.depthwise_conv import reference
from kernels.typing import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """See `api.depthwise_conv`."""
    return reference.depthwise_conv(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: int):
    return reference.depthwise_conv(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    _, transpose = jax.vjp(lambda x: reference.depthwise_conv(x, kernel, stride), x)
    (x_gradient,) = transpose(cotangent)
    taps = kernel.shape[:-1]

    def correlate(x: Array, cotangent: Array) -> Array:
        products = [
            jnp.sum(x[(..., *window, slice(None))] * cotangent, axis=range(x.ndim - 1))
            for _, window in reference.windows(x.shape[-1 - len(taps) : -1], taps, stride)
        ]
        return jnp.stack(products).reshape(kernel.shape)

    def one_by_one(x: Array, cotangent: Array) -> Array:
        # An utterance and its cotangent stay in the cache for all the taps.
        def add(total, utterance):
            return total + correlate(*utterance), None

        return jax.lax.scan(add, jnp.zeros_like(kernel), (x, cotangent))[0]

    return x_gradient, jax.lax.platform_dependent(x, cotangent, cpu=one_by_one, default=correlate)


depthwise_conv.defvjp(_forward, _backward)
