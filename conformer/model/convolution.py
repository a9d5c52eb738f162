"""The convolution module: a gated point-wise layer, a depthwise convolution in time, a point-wise layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layers import LayerNorm, linear
from kernels.depthwise_conv import depthwise_conv
from kernels.typing import Array, Bool, Float


class Convolution(nnx.Module):
    """y = swish(LayerNorm(depthwise(GLU(LayerNorm(x) W1)))) W2 (Gulati et al., 2020, section 2.2).

    LayerNorm stands where the paper has BatchNorm: its result depends neither on padding nor on the batch.
    """

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        dim, taps = config.encoder_dim, config.kernel_size
        self.causal = config.causal_conv
        self.norm = LayerNorm(dim, config.kernels)
        self.gate = linear(dim, 2 * dim, compute=compute, rngs=rngs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (taps, dim)) * taps**-0.5)
        self.middle_norm = LayerNorm(dim, config.kernels)
        self.output = linear(dim, dim, compute=compute, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames channels"],
        inside: Bool[Array, "batch frames"],
        past: Float[Array, "batch past channels"] | None = None,
    ) -> tuple[Float[Array, "batch frames channels"], Float[Array, "batch inputs channels"]]:
        """Convolves `past` followed by x.

        Args:
            inside: false for frames past the end of an utterance: they count as zeros.
            past: the newest kernel_size - 1 inputs of the depthwise convolution; None = zeros.

        Returns:
            the output, and the inputs of the depthwise convolution, from which a stream keeps the newest.
        """
        value, gate = jnp.split(self.gate(self.norm(x)), 2, axis=-1)
        inputs = jnp.where(inside[..., None], value * jax.nn.sigmoid(gate), 0.0)
        context = self.kernel.shape[0] - 1
        if past is not None:
            inputs = jnp.concatenate([past, inputs], axis=1)
        elif self.causal:
            inputs = jnp.pad(inputs, ((0, 0), (context, 0), (0, 0)))
        else:
            inputs = jnp.pad(inputs, ((0, 0), (context // 2, context // 2), (0, 0)))
        y = depthwise_conv(inputs, self.kernel[...])
        return self.output(jax.nn.swish(self.middle_norm(y))), inputs
