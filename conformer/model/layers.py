"""What every module is made of: linear maps in a chosen format, layer normalisation, dropout."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.typing import Array, Float, Key


def linear(in_features: int, out_features: int, *, compute: str, rngs: nnx.Rngs) -> nnx.Linear:
    """y = x W + b, multiplied in the format `compute` and accumulated in float32."""
    dot_general = functools.partial(low_precision_dot, compute)
    return nnx.Linear(in_features, out_features, dot_general=dot_general, rngs=rngs)


def low_precision_dot(compute: str, x: Array, weight: Array, dimensions, **_) -> Array:
    """A `dot_general` of nnx.Linear and nnx.LinearGeneral that multiplies in `compute` and accumulates in float32."""
    if weight.ndim == 2 and dimensions == (((x.ndim - 1,), (0,)), ((), ())):
        return _matmul(x, weight, compute)
    return jax.lax.dot_general(
        x.astype(compute), weight.astype(compute), dimensions, preferred_element_type=jnp.float32
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, weight: Array, compute: str) -> Array:
    # Without this rule the gradient would multiply a float32 cotangent with a low-precision operand, the slow way.
    return _product("...i,io->...o", x, weight, compute)


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


class LayerNorm(nnx.Module):
    """Layer normalisation with a learned scale and bias.

    Args:
        kernels: as `ModelConfig.kernels`.
    """

    def __init__(self, features: int, kernels: str):
        self.eps = 1e-5
        self.implementation = kernels or None
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        return layer_norm(x, self.scale[...], self.bias[...], eps=self.eps, implementation=self.implementation)

    def of_sum(
        self, x: Float[Array, "*batch channels"], residual: Float[Array, "*batch channels"]
    ) -> Float[Array, "*batch channels"]:
        """Of x + residual, in one pass where the implementation has one."""
        scale, bias = self.scale[...], self.bias[...]
        return add_layer_norm(x, residual, scale, bias, eps=self.eps, implementation=self.implementation)[0]


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Zeroes a share `rate` of the values (to the nearest 1/256) and scales the rest up; no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    # A byte a value, four from each word: the generator is a visible part of a training step on the CPU.
    threshold = round(rate * 256)
    words = jax.random.bits(key, (math.ceil(x.size / 4),), jnp.uint32)
    bytes_ = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(bytes_ >= threshold, x * (256 / (256 - threshold)), 0.0)
