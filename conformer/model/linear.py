"""Linear maps in a chosen format, and dropout."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kernels.typing import Array, Float, Key, Num


def linear(in_features: int, out_features: int, *, compute: str, rngs: nnx.Rngs, use_bias: bool = True) -> "Linear":
    """y = x W + b, multiplied in the format `compute` and accumulated in float32."""
    dot = functools.partial(low_precision_dot, compute)
    return Linear(in_features, out_features, use_bias=use_bias, dot_general=dot, rngs=rngs)


class Linear(nnx.Linear):
    """An nnx.Linear that maps channels wherever they stand."""

    def channels_first(self, x: Float[Array, "batch in height frames"]) -> Float[Array, "batch out out_height frames"]:
        """The same map as a 1x1 convolution; see `pointwise`. The weights stay as `__call__` has them."""
        compute = self.dot_general.args[0]  # what `linear`, or a numerics policy, chose
        y: Array = _pointwise(x, self.kernel[...], compute)  # pyright: ignore[reportAssignmentType]
        return y if self.bias is None else y + self.bias[...][:, None, None]


def pointwise(
    x: Num[Array, "batch in height frames"], weight: Num[Array, "rows out"], accumulation: DTypeLike = jnp.float32
) -> Num[Array, "batch out out_height frames"]:
    """y[b, o, h, s] = sum_{i, c} x[b, c, h + i, s] weight[i in + c, o], a convolution as high as the weights have rows.

    With rows = in that is 1x1. With rows = height * in it joins all the height, the frequency bins that are left of a
    front end, and replaces a reshape.
    """
    kernel = weight.reshape(-1, 1, x.shape[1], weight.shape[1])
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NCHW", "HWIO", "NCHW"), preferred_element_type=accumulation
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pointwise(x: Array, weight: Array, compute: str) -> Array:
    # JAX has no gradient for a convolution of narrow operands with a wide result.
    return pointwise(x.astype(compute), weight.astype(compute))


def _pointwise_forward(x: Array, weight: Array, compute: str):
    return _pointwise(x, weight, compute), (x, weight)


def _pointwise_backward(compute: str, residuals, cotangent: Array):
    rounded = [a.astype(compute).astype(jnp.float32) for a in residuals]
    _, gradient = jax.vjp(pointwise, *rounded)
    return gradient(cotangent)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def low_precision_dot(compute: str, x: Array, weight: Array, dimensions, **_) -> Array:
    """A `dot_general` of nnx.Linear and nnx.LinearGeneral that multiplies in `compute` and accumulates in float32."""
    if weight.ndim == 2 and dimensions == (((x.ndim - 1,), (0,)), ((), ())):
        return _matmul(x, weight, compute)
    return _dot(x, weight, dimensions, compute)


def _dot(x: Array, weight: Array, dimensions, compute: str) -> Array:
    return jax.lax.dot_general(
        x.astype(compute), weight.astype(compute), dimensions, preferred_element_type=jnp.float32
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, weight: Array, compute: str) -> Array:
    # Without this rule the gradient would multiply a float32 cotangent with a low-precision operand, the slow way.
    return _dot(x, weight, (((x.ndim - 1,), (0,)), ((), ())), compute)


def _matmul_forward(x: Array, weight: Array, compute: str):
    return _matmul(x, weight, compute), (x, weight)


def _matmul_backward(compute: str, residuals, cotangent: Array):
    # Without the barrier XLA computes what led to x once more, in the transposed order that the product reads: slowly.
    x, weight = jax.lax.optimization_barrier(residuals)
    return (
        _product("...o,io->...i", cotangent, weight, compute),
        _product("...i,...o->io", x, cotangent, compute),
    )


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _product(equation: str, a: Array, b: Array, compute: str) -> Array:
    return jnp.einsum(equation, a.astype(compute), b.astype(compute), preferred_element_type=jnp.float32)


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Zeroes a share `rate` of the values (to the nearest 1/256) and scales the rest up; no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    # A byte a value, four from each word: the generator is a visible part of a training step on the CPU.
    threshold = round(rate * 256)
    words = jax.random.bits(key, (math.ceil(x.size / 4),), jnp.uint32)
    bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(bytes_ >= threshold, x * (256 / (256 - threshold)), 0.0)
