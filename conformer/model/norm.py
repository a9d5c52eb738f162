"""Normalisations: LayerNorm of each frame, and BatchNorm by statistics of the training data."""

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import NORMS, ModelConfig, load_kind
from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.typing import Array, Bool, Float


def make_norm(kind: str, features: int, config: ModelConfig) -> "LayerNorm | BatchNorm":
    """The normalisation of that name in `conformer.config.NORMS`."""
    return load_kind(NORMS[kind])(features, config)


class LayerNorm(nnx.Module):
    """Layer normalisation with a learned scale and bias.

    Args:
        features: channels of a frame.
        config: `norm_eps` and `kernels` are used.
    """

    def __init__(self, features: int, config: ModelConfig):
        self.eps = config.norm_eps
        self.implementation = config.kernels or None
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "*shape"], *, axis: int = -1) -> Float[Array, "*shape"]:
        scale, bias = self.scale[...], self.bias[...]
        return layer_norm(x, scale, bias, eps=self.eps, axis=axis, implementation=self.implementation)

    def of_sum(
        self, x: Float[Array, "*batch channels"], residual: Float[Array, "*batch channels"]
    ) -> Float[Array, "*batch channels"]:
        """Normalises x + residual, in one pass where the implementation has one."""
        scale, bias = self.scale[...], self.bias[...]
        return add_layer_norm(x, residual, scale, bias, eps=self.eps, implementation=self.implementation)[0]


class RunningStatistic(nnx.Variable):
    """A statistic that training keeps up to date: part of the model, without a gradient."""


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) scale + bias, each channel by its own statistics (Ioffe and Szegedy, 2015).

    Training normalises by the frames of the batch, those outside their utterance left out, and remembers a moving
    average. Inference normalises by that average: a constant map of each channel, which `fold` puts into a convolution
    before it.

    Args:
        features: channels of a frame.
        config: `norm_eps` is used.
    """

    MOMENTUM = 0.99  # share of the average that a training step keeps

    def __init__(self, features: int, config: ModelConfig):
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = RunningStatistic(jnp.zeros(features))
        self.variance = RunningStatistic(jnp.ones(features))

    def fold(
        self, kernel: Float[Array, "taps channels"], bias: Float[Array, " channels"] | None
    ) -> tuple[Array, Float[Array, " channels"]]:
        """The kernel and the bias of a depthwise convolution that does the inference of this norm too."""
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + self.eps)
        mean = self.mean[...] if bias is None else self.mean[...] - bias
        return kernel * scale, self.bias[...] - mean * scale

    def of_batch(self, x: Float[Array, "*shape"], inside: Bool[Array, "*#shape"], axis: int) -> Float[Array, "*shape"]:
        """Normalises by the statistics of the frames where `inside` is true, and adds them to the moving average.

        Args:
            axis: where the channels stand.
        """
        others = tuple(other for other in range(x.ndim) if other != axis % x.ndim)
        weight = inside.astype(x.dtype)
        count = jnp.maximum(jnp.sum(weight), 1.0)

        def average(values: Array) -> Array:
            return jnp.sum(values * weight, axis=others, keepdims=True) / count

        mean = average(x)
        variance = average(jnp.square(x - mean))
        for statistic, value in ((self.mean, mean), (self.variance, variance)):
            new = jax.lax.stop_gradient(value.reshape(-1))
            statistic[...] = self.MOMENTUM * statistic[...] + (1 - self.MOMENTUM) * new
        shape = mean.shape
        normalised = (x - mean) * jax.lax.rsqrt(variance + self.eps)
        return normalised * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)
