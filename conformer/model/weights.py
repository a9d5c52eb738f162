"""Formats in which a trained model keeps its weights: a stream reads all of them for every chunk."""

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.model.layers import linear
from kernels.typing import Array, Float

FORMATS = ("float32", "bfloat16", "int8")


class Int8Linear(nnx.Module):
    """y = (x_q W_q) s_x s_W + b: a linear map with weights in int8, its inputs quantised as they come.

    The weights have a scale for each output, s_W = max|W| / 127, and the inputs one for each row, s_x = max|x| / 127.
    The products are summed exactly, in int32.
    """

    def __init__(self, source: nnx.Linear):
        kernel = source.kernel[...]
        scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=0), 1e-12) / 127
        self.kernel = nnx.Param(jnp.round(kernel / scale).astype(jnp.int8))
        self.scale = nnx.Param(scale)
        self.bias = source.bias

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        # An input of zeros alone has no scale of its own; any does.
        scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-12) / 127
        quantised = jnp.round(x / scale).astype(jnp.int8)
        dimensions = (((x.ndim - 1,), (0,)), ((), ()))
        product = jax.lax.dot_general(quantised, self.kernel[...], dimensions, preferred_element_type=jnp.int32)
        y = product.astype(jnp.float32) * scale * self.scale[...]
        return y if self.bias is None else y + self.bias[...]


def convert_weights(model: nnx.Module, weights: str) -> None:
    """Changes, in place, the format of the weights of every linear map but the CTC head.

    "bfloat16" multiplies in bfloat16 and accumulates in float32; "int8" is `Int8Linear`. Activations stay float32, as
    do the few other parameters: convolutions, norms, biases. The head decides between symbols and is 1 % of the
    weights. Raises ValueError for another format.
    """
    if weights not in FORMATS:
        raise ValueError(f"weights={weights!r} is not one of {', '.join(FORMATS)}")
    if weights == "float32":
        return
    for _, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            if isinstance(child, nnx.Linear) and name != "head":
                setattr(module, name, Int8Linear(child) if weights == "int8" else _bfloat16(child))


def _bfloat16(source: nnx.Linear) -> nnx.Linear:
    converted = linear(source.in_features, source.out_features, compute="bfloat16", rngs=nnx.Rngs(0))
    converted.kernel = nnx.Param(source.kernel[...].astype(jnp.bfloat16))
    converted.bias = source.bias
    return converted
