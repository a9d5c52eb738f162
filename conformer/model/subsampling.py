"""Front ends: feature frames in, encoder frames out, a fixed factor fewer. This file holds the convolutional ones."""

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.config import FRONT_ENDS, ConfigError, ModelConfig, load_kind
from conformer.lengths import Lengths
from conformer.model.layouts.layout import Frames, Image, Layout
from conformer.model.linear import Linear, linear
from kernels.typing import Array


class Subsampling(nnx.Module, Lengths):
    """A front end: `projection`, its last layer, maps to the encoder's width."""

    projection: Linear

    def __init__(self, config: ModelConfig):
        factor = config.subsampling_factor
        Lengths.__init__(self, factor, self.right_context_of(factor), config.subsampling_padding)

    @staticmethod
    def right_context_of(subsampling_factor: int) -> int:
        """See `Lengths`."""
        raise NotImplementedError

    def __call__(self, x: Image, layout: Layout, heard: Image | None = None) -> Frames:
        """Encoder frames of normalised features, as an image of one channel.

        Args:
            heard: 1 for the feature frames inside the utterance, 0 for others, where the front end is padded: those
                count as zeros in every layer. None = all are inside.
        """
        raise NotImplementedError


def make_subsampling(config: ModelConfig, num_mel_bins: int, *, compute: str, rngs: nnx.Rngs) -> Subsampling:
    """The front end that `model.subsampling` names. Raises ConfigError for a size that it cannot have."""
    return load_kind(FRONT_ENDS[config.subsampling])(config, num_mel_bins, compute=compute, rngs=rngs)


def lengths_of(config: ModelConfig) -> Lengths:
    """Returns the numbers of frames of the front end that `model.subsampling` names; needs no parameters."""
    kind = load_kind(FRONT_ENDS[config.subsampling])
    factor = config.subsampling_factor
    return Lengths(factor, kind.right_context_of(factor), config.subsampling_padding)


class Stage(NamedTuple):
    """One convolution over (time, frequency)."""

    taps: tuple[int, int]
    strides: tuple[int, int]


# (taps, stride), the same in time and frequency.
SQUARES = {4: ((3, 2), (3, 2)), 6: ((3, 2), (5, 3)), 8: ((3, 2), (3, 2), (3, 2))}
FREQUENCY_PADDING = {"none": (0, 0), "symmetric": (1, 1), "causal": (2, 1)}
# Of the three frames that a stage reads, those of which one at least must be inside for its result to be. So a stage
# gives ceil(n / 2) frames of n where it is padded alike on both sides, and floor(n / 2) + 1 where it is causal.
HEARD_BY = {
    name: np.array(taps, np.float32).reshape(3, 1, 1)
    for name, taps in (("symmetric", (0, 1, 0)), ("causal", (0, 1, 1)))
}


class Vanilla(Subsampling):
    """Strided dense convolutions over (time, frequency), then a linear map to the encoder's width.

    With `model.subsampling_padding`, convolutions of three taps pad frequency by themselves, and time by the frames
    outside the utterance, which count as zeros.
    """

    separable: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, num_mel_bins: int, *, compute: str, rngs: nnx.Rngs):
        super().__init__(config)
        channels, bins, convolutions = config.subsampling_channels, num_mel_bins, []
        self.frequency_padding = FREQUENCY_PADDING[self.padding]
        for index, stage in enumerate(_stages(config)):
            if index > 0 and self.separable:
                convolutions.append(SeparableConv(channels, stage, compute=compute, rngs=rngs))
            else:
                convolutions.append(DenseConv(channels if index else 1, channels, stage, rngs=rngs))
            bins = (bins + sum(self.frequency_padding) - stage.taps[1]) // stage.strides[1] + 1
        if bins < 1:
            raise ConfigError(
                f"features.num_mel_bins={num_mel_bins} mel bins are too few for model.subsampling_factor="
                f"{self.subsampling_factor}: raise the one or lower the other"
            )
        self.stages = nnx.List(convolutions)
        self.projection = linear(bins * channels, config.encoder_dim, compute=compute, rngs=rngs)

    @staticmethod
    def right_context_of(subsampling_factor: int) -> int:
        span = 1
        for taps, stride in reversed(SQUARES[subsampling_factor]):
            span = (span - 1) * stride + taps
        return span - 1

    def __call__(self, x: Image, layout: Layout, heard: Image | None = None) -> Frames:
        for stage in self.stages:
            if heard is not None:
                x = layout.pad_frequency(layout.weigh(x, heard), *self.frequency_padding)
                heard = layout.at_most_one(layout.filter(heard, HEARD_BY[self.padding], (2, 1)))
            x = layout.relu(stage(x, layout))
        if heard is not None:
            x = layout.weigh(x, heard)
        return layout.linear(self.projection, layout.flatten(x))


class DepthwiseSeparable(Vanilla):
    """The same, but only the first convolution is dense, which has one channel in.

    The others filter each channel by itself and mix the channels at a point (Xu et al., 2024). That takes the front
    end's share of the compute from about a third to a few per cent.
    """

    separable = True


class DenseConv(nnx.Module):
    """An ordinary convolution over (time, frequency)."""

    def __init__(self, in_channels: int, out_channels: int, stage: Stage, *, rngs: nnx.Rngs):
        self.strides = stage.strides
        shape = (*stage.taps, in_channels, out_channels)
        self.kernel = nnx.Param(_uniform(rngs, shape, math.prod(shape[:-1])))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: Image, layout: Layout) -> Image:
        return layout.convolve(x, self.kernel[...], self.bias[...], self.strides)


class SeparableConv(nnx.Module):
    """A depthwise convolution over (time, frequency) and a linear map over channels."""

    def __init__(self, channels: int, stage: Stage, *, compute: str, rngs: nnx.Rngs):
        self.strides = stage.strides
        self.kernel = nnx.Param(_uniform(rngs, (*stage.taps, channels), math.prod(stage.taps)))
        self.pointwise = linear(channels, channels, compute=compute, rngs=rngs)

    def __call__(self, x: Image, layout: Layout) -> Image:
        return layout.linear(self.pointwise, layout.filter(x, self.kernel[...], self.strides))


def _stages(config: ModelConfig) -> list[Stage]:
    """The convolutions of a front end.

    `subsampling_frequency_stride` multiplies the last one's stride along frequency, and widens it so that it still
    reads every bin: the bins that are left decide what a depthwise separable front end costs.
    """
    squares = [Stage((taps, taps), (stride, stride)) for taps, stride in SQUARES[config.subsampling_factor]]
    (taps, _), (stride, _) = squares[-1]
    wider = stride * (config.subsampling_frequency_stride - 1)
    squares[-1] = Stage((taps, taps + wider), (stride, stride + wider))
    return squares


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    limit = math.sqrt(3 / fan_in)
    return jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
