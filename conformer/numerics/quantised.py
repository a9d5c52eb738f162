"""Linear maps in eight bits."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.model.linear import pointwise
from kernels.typing import Array, Float


class QuantisedLinear(nnx.Module):
    """y = (x_q W_q) s_x s_W + b: weights in int8 or float8, inputs quantised as they come.

    The weights have a scale for each output, s_W = max|W| / M, and the inputs one for each row, s_x = max|x| / M, with
    M = 127 or the largest value of the float8 format. Products are added up in int32, exactly, or in float32.

    Args:
        source: the float32 layer; of a LinearGeneral, all of its axes count as one.
        format: "int8", "float8_e4m3fn" or "float8_e5m2".
    """

    def __init__(self, source: nnx.Linear | nnx.LinearGeneral, format: str):
        kernel, inputs = source.kernel[...], 1
        if isinstance(source, nnx.LinearGeneral):
            inputs = len(source.axis)
            if source.batch_axis or sorted(axis % -inputs for axis in source.axis) != list(range(1 - inputs, 1)):
                raise ValueError(
                    f"a LinearGeneral over the axes {source.axis} cannot be quantised: contract the last ones"
                )
        self.input_shape, self.output_shape = kernel.shape[:inputs], kernel.shape[inputs:]
        self.format = format
        kernel = kernel.reshape(math.prod(self.input_shape), -1)
        quantised, scale = quantise(kernel, format, axis=0)
        self.kernel = nnx.Param(quantised)
        self.scale = nnx.Param(scale[0])
        self.bias = source.bias

    def __call__(self, x: Float[Array, "..."], out_sharding: None = None) -> Float[Array, "..."]:
        x = x.reshape(*x.shape[: x.ndim - len(self.input_shape)], -1)
        quantised, scale = quantise(x, self.format, axis=-1)
        dimensions = (((x.ndim - 1,), (0,)), ((), ()))
        accumulation = jnp.int32 if self.format == "int8" else jnp.float32
        product = jax.lax.dot_general(quantised, self.kernel[...], dimensions, preferred_element_type=accumulation)
        y = (product.astype(jnp.float32) * scale * self.scale[...]).reshape(*x.shape[:-1], *self.output_shape)
        return y if self.bias is None else y + self.bias[...]

    def channels_first(self, x: Float[Array, "batch in height frames"]) -> Float[Array, "batch out out_height frames"]:
        """Computes `conformer.model.linear.Linear.channels_first`, with one scale for the inputs of each result."""
        whole = self.kernel.shape[0] > x.shape[1]
        quantised, scale = quantise(x, self.format, axis=(1, 2) if whole else 1)
        accumulation = jnp.int32 if self.format == "int8" else jnp.float32
        product = pointwise(quantised, self.kernel[...], accumulation)
        y = product.astype(jnp.float32) * scale * self.scale[...][:, None, None]
        return y if self.bias is None else y + self.bias[...][:, None, None]


def quantise(x: Float[Array, "..."], format: str, axis: int | tuple[int, ...]) -> tuple[Array, Float[Array, "..."]]:
    """q in `format` and a scale for each slice along `axis`, with x = q scale to within rounding."""
    largest = 127.0 if format == "int8" else float(jnp.finfo(format).max)
    # A slice of zeros alone has no scale of its own; any does.
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axis, keepdims=True), 1e-12) / largest
    scaled = x / scale
    return (jnp.round(scaled) if format == "int8" else jnp.clip(scaled, -largest, largest)).astype(format), scale
