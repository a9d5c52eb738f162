"""What a chunk of a stream costs whatever runs it: counted from the configuration."""

from typing import NamedTuple

from conformer.config import Config
from conformer.model.subsampling import STAGES


class Operations(NamedTuple):
    """Multiplications and additions in products of matrices, two a product."""

    linear: int  # linear maps, those of the front end included
    convolution: int  # dense convolutions of the front end
    attention: int  # scores and weighted sums
    head: int  # the map to the units

    @property
    def total(self) -> int:
        return sum(self)


def chunk_operations(config: Config, chunk_size: int, num_left_chunks: int) -> Operations:
    """The operations of one chunk of one stream: `encoder.step` and the head.

    Left out is what is no product of matrices: depthwise convolutions, norms, softmax, activations. Frames that
    windows overlap by are counted, since the front end computes them again.

    Args:
        chunk_size: encoder frames of the chunk.
        num_left_chunks: chunks of left context, all present.
    """
    model = config.model
    dim, keys = model.encoder_dim, chunk_size * (num_left_chunks + 1)
    # Two feed-forwards; query, key, value and output; the two halves of the gate, and the convolution's output.
    block = 4 * dim * model.feed_forward_dim + 4 * dim**2 + 3 * dim**2
    front_linear, front_convolution = _front_end(config, chunk_size)
    return Operations(
        linear=2 * (chunk_size * model.num_layers * block + front_linear),
        convolution=2 * front_convolution,
        attention=2 * model.num_layers * 2 * chunk_size * keys * dim,
        head=2 * chunk_size * dim * model.vocab_size,
    )


def _front_end(config: Config, chunk_size: int) -> tuple[int, int]:
    """Products in linear maps and in dense convolutions."""
    model, bins = config.model, config.features.num_mel_bins
    stages = STAGES[model.subsampling_factor]
    frames = [chunk_size]  # after each stage, found from the last back to the first
    for taps, stride in reversed(stages[1:]):
        frames.insert(0, (frames[0] - 1) * stride + taps)
    channels = model.subsampling_channels
    linear = convolution = 0
    for index, (taps, stride) in enumerate(stages):
        bins = (bins - taps) // stride + 1
        positions = frames[index] * bins
        if index > 0 and model.subsampling == "depthwise_separable":
            linear += positions * channels**2
        else:
            convolution += positions * taps**2 * (channels if index else 1) * channels
    return linear + chunk_size * bins * channels * model.encoder_dim, convolution
