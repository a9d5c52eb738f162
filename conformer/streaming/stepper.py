"""The interface between a stream and a network: the sizes that audio is cut by, and a step that keeps the state."""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import numpy as np

from conformer.config import FeatureConfig
from conformer.filterbank import plan_of
from conformer.lengths import Lengths
from kernels.typing import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Framing:
    """The sizes by which audio is cut into windows of features, each of which becomes a chunk of encoder frames.

    A chunk sees the `look_ahead` frames after it too, which its window holds; they are recognised with the next chunk.
    With `whole`, a window holds a recording from its beginning to its end, followed by zeros.
    """

    features: FeatureConfig
    lengths: Lengths
    chunk_size: int  # encoder frames that a window adds
    look_ahead: int = 0  # encoder frames at the end of a window that the next one begins with
    whole: bool = False

    @classmethod
    def of_whole(cls, features: FeatureConfig, lengths: Lengths, seconds: float) -> "Framing":
        """Returns the framing of whole recordings that last at most `seconds`."""
        plan, samples = plan_of(features), math.ceil(seconds * features.sample_rate)
        frames = -(-(samples + plan.trailing) // plan.shift) + 1  # one more, which resampling may give
        return cls(features, lengths, max(lengths.output_lengths(frames), 1), whole=True)

    @property
    def window_frames(self) -> int:
        """Encoder frames of a window: a chunk and its look-ahead."""
        return self.chunk_size + self.look_ahead

    @property
    def window(self) -> int:
        """Feature frames of a window."""
        return self.lengths.window(self.window_frames)

    @property
    def shift(self) -> int:
        """Feature frames from a window's start to the next one's."""
        return self.chunk_size * self.subsampling_factor

    @property
    def subsampling_factor(self) -> int:
        """Feature frames from an encoder frame to the next."""
        return self.lengths.subsampling_factor

    @property
    def frame_seconds(self) -> float:
        """Audio from an encoder frame to the next."""
        return self.subsampling_factor * self.features.frame_shift_ms / 1000

    @property
    def longest(self) -> float:
        """Seconds that a recording may last: those of a window, where a window is a whole recording."""
        if not self.whole:
            return math.inf
        plan = plan_of(self.features)
        frames = self.window - self.lengths.lead + (0 if self.lengths.lead else self.subsampling_factor - 1)
        return (frames * plan.shift - plan.trailing) / self.features.sample_rate

    def num_frames(self, feature_frames: int) -> int:
        """Encoder frames of a recording."""
        return self.lengths.output_lengths(feature_frames)

    def end(self, window: Float[np.ndarray, "window mel"], num_frames: int) -> int:
        """Returns the feature frame of a window at which a whole recording of `num_frames` encoder frames ends.

        That is behind the last frame that is not zero, or the earliest place that gives as many.
        """
        heard = np.flatnonzero(window.any(axis=1))
        return max(self.lengths.needed(num_frames), int(heard[-1]) + 1 if len(heard) else 0)


@runtime_checkable
class Stepper(Protocol):
    """Steps `batch_size` streams at once; each row of the batch is a slot that a stream can hold. Knows no text."""

    framing: Framing
    batch_size: int

    def __call__(
        self,
        windows: Float[np.ndarray, "batch window mel"],
        num_frames: Int[np.ndarray, " batch"],
        fresh: Bool[np.ndarray, " batch"] | None = None,
    ) -> Float[np.ndarray, "batch frames vocab"]:
        """Log-probabilities of each slot's next chunk.

        Args:
            windows: features; rows of slots with nothing to do are ignored.
            num_frames: valid encoder frames of each slot's window, its look-ahead included; 0 = nothing to do.
            fresh: slots that begin a new stream with this chunk.
        """
        ...

    def reset(self) -> None:
        """Begins new streams in all slots."""
        ...

    def warm_up(self) -> None:
        """Runs a first step ahead of the first audio, since it takes longer than others."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of state of one stream."""
        ...
