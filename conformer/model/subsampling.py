"""Convolutional front ends: feature frames in, encoder frames out, a fixed factor fewer."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import ConfigError, ModelConfig
from conformer.model.layers import linear
from kernels.depthwise_conv import depthwise_conv
from kernels.typing import Array, Float


class Stage(NamedTuple):
    """One convolution over (time, frequency)."""

    taps: tuple[int, int]
    strides: tuple[int, int]


# (taps, stride), the same in time and frequency.
SQUARES = {4: ((3, 2), (3, 2)), 6: ((3, 2), (5, 3)), 8: ((3, 2), (3, 2), (3, 2))}


def stages(config: ModelConfig) -> list[Stage]:
    """The convolutions of a front end.

    `subsampling_frequency_stride` multiplies the last one's stride along frequency, and widens it so that it still
    reads every bin: the bins that are left decide what a depthwise separable front end costs.
    """
    squares = [Stage((taps, taps), (stride, stride)) for taps, stride in SQUARES[config.subsampling_factor]]
    (taps, _), (stride, _) = squares[-1]
    wider = stride * (config.subsampling_frequency_stride - 1)
    squares[-1] = Stage((taps, taps + wider), (stride, stride + wider))
    return squares


class Subsampling(nnx.Module):
    """Strided convolutions over (time, frequency), then a linear map to the encoder's width.

    "vanilla" convolves densely at every stage. "depthwise_separable" does so at the first (one channel in); at the
    others it filters each channel by itself and mixes the channels at a point (Xu et al., 2024), which takes the front
    end's share of the compute from about a third to a few per cent.

    No stage pads the time axis. Encoder frame n therefore depends on the feature frames
    [n * subsampling_factor, n * subsampling_factor + right_context] alone, and a stream needs no state here: it feeds
    windows that overlap.
    """

    def __init__(self, config: ModelConfig, num_mel_bins: int, *, compute: str, rngs: nnx.Rngs):
        self.subsampling_factor = config.subsampling_factor
        self.right_context = right_context(config.subsampling_factor)
        channels, bins, convolutions = config.subsampling_channels, num_mel_bins, []
        for index, stage in enumerate(stages(config)):
            if index > 0 and config.subsampling == "depthwise_separable":
                convolutions.append(SeparableConv(channels, stage, compute=compute, rngs=rngs))
            else:
                convolutions.append(DenseConv(channels if index else 1, channels, stage, rngs=rngs))
            bins = (bins - stage.taps[1]) // stage.strides[1] + 1
        if bins < 1:
            raise ConfigError(
                f"features.num_mel_bins={num_mel_bins} mel bins are too few for model.subsampling_factor="
                f"{self.subsampling_factor}: raise the one or lower the other"
            )
        self.stages = nnx.List(convolutions)
        self.projection = linear(bins * channels, config.encoder_dim, compute=compute, rngs=rngs)

    def window(self, chunk_size: int) -> int:
        """Feature frames that yield exactly `chunk_size` encoder frames."""
        return window_length(chunk_size, self.subsampling_factor)

    def output_lengths(self, lengths: Any) -> Any:
        """Encoder frames from feature frames (an integer or an array of them)."""
        return output_lengths(lengths, self.subsampling_factor)

    def check_length(self, num_frames: int) -> None:
        """Raises ValueError for fewer feature frames than one encoder frame needs."""
        if num_frames <= self.right_context:
            raise ValueError(f"{num_frames} feature frames are too few: one encoder frame needs {self.window(1)}")

    def __call__(self, features: Float[Array, "batch time mel"]) -> Float[Array, "batch frames channels"]:
        self.check_length(features.shape[1])
        x = features[..., None]
        for stage in self.stages:
            x = jax.nn.relu(stage(x))
        # Whole at last: in one loop with what follows, XLA would find the place of every value by division.
        x = jax.lax.optimization_barrier(x)
        return self.projection(x.reshape(*x.shape[:2], -1))


def right_context(subsampling_factor: int) -> int:
    """Feature frames that an encoder frame needs beyond its first."""
    span = 1
    for taps, stride in reversed(SQUARES[subsampling_factor]):
        span = (span - 1) * stride + taps
    return span - 1


def window_length(num_frames: int, subsampling_factor: int) -> int:
    """Feature frames that yield exactly `num_frames` encoder frames."""
    return (num_frames - 1) * subsampling_factor + right_context(subsampling_factor) + 1


def output_lengths(lengths: Any, subsampling_factor: int) -> Any:
    """Encoder frames from feature frames, (length - right_context - 1) // subsampling_factor + 1, at least 0."""
    frames = (lengths - right_context(subsampling_factor) - 1) // subsampling_factor + 1
    return max(frames, 0) if isinstance(frames, int) else frames.clip(0)


class DenseConv(nnx.Module):
    """An ordinary convolution over (time, frequency)."""

    def __init__(self, in_channels: int, out_channels: int, stage: Stage, *, rngs: nnx.Rngs):
        self.strides = stage.strides
        shape = (*stage.taps, in_channels, out_channels)
        self.kernel = nnx.Param(_uniform(rngs, shape, math.prod(shape[:-1])))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: Float[Array, "batch time mel in"]) -> Float[Array, "batch out_time out_mel out"]:
        if x.shape[-1] == 1:  # an outer product at each tap: half the time of a convolution on the CPU
            return depthwise_conv(x, self.kernel[:, :, 0], stride=self.strides) + self.bias[...]
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, self.kernel[...], self.strides, "VALID", dimension_numbers=layout)
        return y + self.bias[...]


class SeparableConv(nnx.Module):
    """A depthwise convolution over (time, frequency) and a linear map over channels."""

    def __init__(self, channels: int, stage: Stage, *, compute: str, rngs: nnx.Rngs):
        self.strides = stage.strides
        self.kernel = nnx.Param(_uniform(rngs, (*stage.taps, channels), math.prod(stage.taps)))
        self.pointwise = linear(channels, channels, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time mel channels"]) -> Float[Array, "batch out_time out_mel channels"]:
        return self.pointwise(depthwise_conv(x, self.kernel[...], stride=self.strides))


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    limit = math.sqrt(3 / fan_in)
    return jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
