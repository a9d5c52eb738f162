"""The sizes of an artefact and the state that it carries, on which exporters and runtimes agree."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from conformer.config import Config, FeatureConfig
from conformer.lengths import Lengths
from conformer.streaming.stepper import Framing
from kernels.typing import Bool, Float

if TYPE_CHECKING:
    from conformer.model import ConformerCTC

MASKED = -1e4  # what a key that is not valid adds to its scores: exp of it is zero


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The fixed sizes of an artefact."""

    chunk_size: int  # encoder frames that a step recognises
    num_left_chunks: int
    subsampling_factor: int  # feature frames an encoder frame
    right_context: int  # feature frames that an encoder frame needs beyond its first
    num_mel_bins: int
    num_layers: int
    num_heads: int
    encoder_dim: int
    kernel_size: int
    vocab_size: int
    subsampling_padding: str = "none"
    positions: str = "learned"
    kind: str = "step"  # of a stream; or "whole": a recording of at most `chunk_size` encoder frames, without a state
    look_ahead: int = 0  # encoder frames after a chunk that it sees, and that the next step recognises

    @classmethod
    def of(
        cls,
        config: Config,
        model: "ConformerCTC",
        chunk_size: int,
        num_left_chunks: int,
        look_ahead: int = 0,
        kind: str = "step",
    ) -> "Geometry":
        """Returns the geometry of a model for streams of one chunk size and context, or for whole recordings."""
        sizes = config.model
        return cls(
            chunk_size,
            num_left_chunks,
            model.encoder.subsampling.subsampling_factor,
            model.encoder.subsampling.right_context,
            config.features.num_mel_bins,
            sizes.num_layers,
            sizes.num_heads,
            sizes.encoder_dim,
            sizes.kernel_size,
            sizes.vocab_size,
            sizes.subsampling_padding,
            sizes.positions,
            kind,
            look_ahead,
        )

    @property
    def lengths(self) -> Lengths:
        """The numbers of frames that go into the front end and come out."""
        return Lengths(self.subsampling_factor, self.right_context, self.subsampling_padding)

    @property
    def context(self) -> dict[str, int]:
        """The sizes that a client is told, by the names of `Engine`'s arguments."""
        return {name: getattr(self, name) for name in ("chunk_size", "num_left_chunks", "look_ahead")}

    @property
    def window_frames(self) -> int:
        """Encoder frames of a window."""
        return self.chunk_size + self.look_ahead

    @property
    def window(self) -> int:
        """Feature frames of a window."""
        return self.lengths.window(self.window_frames)

    @property
    def shift(self) -> int:
        """Feature frames from a window's start to the next one's."""
        return self.chunk_size * self.subsampling_factor

    def framing(self, features: FeatureConfig) -> Framing:
        """Returns the way in which audio is cut for the artefact."""
        return Framing(features, self.lengths, self.chunk_size, self.look_ahead, self.whole)

    @property
    def whole(self) -> bool:
        """True where the artefact takes whole recordings."""
        return self.kind == "whole"

    @property
    def left(self) -> int:
        """Encoder frames of left context."""
        return self.chunk_size * self.num_left_chunks

    @property
    def num_keys(self) -> int:
        """Encoder frames attended to."""
        return self.left + self.window_frames

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.encoder_dim // self.num_heads

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a state's parts, in order; empty for whole recordings.

        Each block has its keys, values and newest inputs of the convolution (key_0, value_0, inputs_0). Where positions
        are absolute, the number of frames of the stream before the chunk comes last.
        """
        if self.whole:
            return {}
        keys = (self.num_heads, self.left, self.head_dim)
        block = {"key": keys, "value": keys, "inputs": (self.kernel_size - 1, self.encoder_dim)}
        parts = {f"{part}_{layer}": shape for layer in range(self.num_layers) for part, shape in block.items()}
        return parts | ({"frames": (1,)} if self.positions == "absolute" else {})

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all inputs, in order, for formats without an interface of their own.

        A step takes features, a mask that is added to the scores of the keys, and the state. A whole recording comes
        with a mask of its encoder frames, 1 inside it and 0 outside, and, where the front end is padded, with such a
        mask of its feature frames.
        """
        window = {"window": (self.window, self.num_mel_bins)}
        if not self.whole:
            return window | {"mask": (self.num_keys,)} | self.state_shapes
        heard = {"heard": (self.window, 1)} if self.lengths.lead else {}
        return window | heard | {"inside": (self.chunk_size, 1)}

    def valid_keys(self, frames_seen: int, num_frames: int) -> Bool[np.ndarray, " keys"]:
        """Returns which keys the next chunk attends to, whose window has `num_frames` valid frames."""
        key = np.arange(self.num_keys)
        return (key >= self.left - min(frames_seen, self.left)) & (key < self.left + num_frames)


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Float[np.ndarray, "..."]]:
    """The state of a new stream, in float32."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
