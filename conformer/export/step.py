"""The streaming step of one stream, as converters translate it best: the network in the layout `constant`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from conformer.config import Config
from conformer.model import ConformerCTC
from conformer.model.layouts.constant import Constant
from conformer.model.layouts.layout import Past
from conformer.model.subsampling import lengths_of
from kernels.typing import Array, Float

LAYOUT = Constant()


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes that an artefact has for ever."""

    chunk_size: int  # encoder frames
    num_left_chunks: int
    subsampling_factor: int  # feature frames an encoder frame
    num_mel_bins: int
    num_layers: int
    num_heads: int
    encoder_dim: int
    kernel_size: int
    vocab_size: int
    right_context: int  # feature frames that an encoder frame needs beyond its first

    @classmethod
    def of(cls, config: Config, chunk_size: int, num_left_chunks: int) -> "Geometry":
        """That of a model in streams of one chunk size and left context."""
        model = config.model
        return cls(
            chunk_size,
            num_left_chunks,
            model.subsampling_factor,
            config.features.num_mel_bins,
            model.num_layers,
            model.num_heads,
            model.encoder_dim,
            model.kernel_size,
            model.vocab_size,
            lengths_of(model).right_context,
        )

    @property
    def window(self) -> int:
        """Feature frames that go in."""
        return (self.chunk_size - 1) * self.subsampling_factor + self.right_context + 1

    @property
    def shift(self) -> int:
        """Feature frames from a window's start to the next one's."""
        return self.chunk_size * self.subsampling_factor

    @property
    def left(self) -> int:
        """Encoder frames of left context."""
        return self.chunk_size * self.num_left_chunks

    @property
    def num_keys(self) -> int:
        """Encoder frames attended to."""
        return self.left + self.chunk_size

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.encoder_dim // self.num_heads

    def initial_state(self) -> tuple[Past, ...]:
        """Of a new stream."""
        keys: Any = np.zeros((self.num_heads, self.left, self.head_dim), np.float32)
        inputs: Any = np.zeros((self.kernel_size - 1, self.encoder_dim), np.float32)
        state = Past(keys, keys, inputs)
        return (state,) * self.num_layers

    def valid_keys(self, frames_seen: int, num_frames: int) -> np.ndarray:
        """bool [num_keys]: those that the next chunk, of `num_frames` valid frames, attends to."""
        key = np.arange(self.num_keys)
        return (key >= self.left - min(frames_seen, self.left)) & (key < self.left + num_frames)


def step(
    model: ConformerCTC,
    window: Float[Array, "window mel"],
    mask: Float[Array, " keys"],
    states: Sequence[Past],
) -> tuple[Float[Array, "frames vocab"], tuple[Past, ...]]:
    """The logits of the next chunk of a stream, and its next state.

    Args:
        model: laid out by `LAYOUT.lay_out`.
        window: features, not normalised.
        mask: added to every query's scores: 0 for a valid key, a large negative number for another.
    """
    logits, new_states = model.logits(window, mask, states, LAYOUT)
    return logits, tuple(new_states)
