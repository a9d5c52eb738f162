"""The first half of a stream: audio in, windows for the network out."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import soxr

from conformer.audio import AudioError, as_samples, check_rate
from conformer.filterbank import StreamingLogMel, trailing_samples
from conformer.streaming.stepper import Framing, Stepper
from kernels.typing import Float


class StreamError(ValueError):
    """A stream used in a way that it cannot serve; the message says what to do instead."""


class Window(NamedTuple):
    """The features of one chunk and its look-ahead, the number of their valid encoder frames, and the next levels.

    Levels are the loudness of feature frames, as far as the chunk's valid encoder frames reach. Those that have not
    come by then, where the front end is padded, come with the next window.
    """

    features: Float[np.ndarray, "window mel"]
    num_frames: int
    levels: Float[np.ndarray, " feature_frames"]


class Windows:
    """Cuts audio of any length, in any pieces, into windows that overlap.

    Args:
        framing: that of the network.
        sample_rate: of the audio that will come; None = the network's. Other rates are resampled as they come.

    Raises StreamError for what is no rate.
    """

    def __init__(self, framing: Framing, sample_rate: int | None = None):
        own_rate = framing.features.sample_rate
        self._framing = framing
        if sample_rate is not None:
            try:
                check_rate(sample_rate)
            except AudioError as error:
                raise StreamError(str(error)) from None
        self._rate = own_rate if sample_rate is None else sample_rate
        self._resampler = None if self._rate == own_rate else soxr.ResampleStream(self._rate, own_rate, 1)
        self._features = StreamingLogMel(framing.features)
        self._pending = np.zeros((framing.lengths.lead, framing.features.num_mel_bins), np.float32)
        self._levels = np.zeros(0, np.float32)  # of feature frames, not handed out
        self._num_levels = 0  # handed out
        self._num_features = 0  # received from the front end
        self._num_encoded = 0  # encoder frames of the windows handed out
        self._remaining: int | None = None  # encoder frames still to come, once the audio has ended
        self._num_samples = 0  # received, at the stream's rate

    @property
    def audio_seconds(self) -> float:
        """Audio received so far."""
        return self._num_samples / self._rate

    @property
    def missing_seconds(self) -> float:
        """Audio that must come at least before there is another window; 0 where there is one."""
        frames = self._framing.window - len(self._pending)
        return max(frames, 0) * self._framing.features.frame_shift_ms / 1000

    @property
    def encoded_seconds(self) -> float:
        """The seconds of audio that the windows handed out so far reach to."""
        return self._num_encoded * self._framing.frame_seconds

    def accept(self, samples: Any, sample_rate: int | None = None) -> None:
        """Takes the next samples (see `as_samples`).

        Raises StreamError for audio that does not continue the stream, and for more than the framing's `longest`, of
        which it takes what fits.
        """
        if self._remaining is not None:
            raise StreamError("audio after the end of the stream: start a new stream for it")
        if sample_rate not in (None, self._rate):
            raise StreamError(
                f"the stream began at {self._rate} Hz and now sends {sample_rate} Hz: start a new stream for it"
            )
        try:
            samples = as_samples(samples)
        except AudioError as error:
            raise StreamError(str(error)) from None
        longest = self._framing.longest
        room = len(samples) if longest == math.inf else int(longest * self._rate) - self._num_samples
        self._num_samples += min(len(samples), room)
        self._extend(samples[:room], last=False)
        if len(samples) > room:
            raise StreamError(
                f"the recording is longer than the {longest:.1f} s that this model takes as a whole: cut it, or run an "
                "export with a larger --max-seconds (export.py --whole)"
            )

    def end(self) -> None:
        """Ends the audio and puts silence behind it (`features.trailing_silence`). May be called again."""
        if self._remaining is not None:
            return
        framing, features = self._framing, self._features
        self._extend(np.zeros(0, np.float32), last=True)
        silence = np.zeros(trailing_samples(framing.features, features.received), np.float32)
        self._append(features.accept(silence))
        self._append(features.flush())
        self._remaining = framing.num_frames(self._num_features) - self._num_encoded
        windows = math.ceil(self._remaining / framing.chunk_size)
        self._pending = np.pad(self._pending, ((0, windows * framing.shift + framing.window), (0, 0)))

    def next_window(self) -> Window | None:
        """The next chunk to encode; None until there is more audio, or when all of it has been encoded."""
        framing = self._framing
        if self._remaining is None:
            num_frames = framing.window_frames if len(self._pending) >= framing.window else 0
        else:
            num_frames = min(self._remaining, framing.window_frames)
        if num_frames == 0:
            return None
        added = min(num_frames, framing.chunk_size)
        if self._remaining is not None:
            self._remaining -= added
        seen = self._num_encoded * framing.subsampling_factor + framing.window - framing.lengths.lead
        self._num_encoded += added
        count = min(seen, self._num_encoded * framing.subsampling_factor) - self._num_levels
        window = Window(self._pending[: framing.window], num_frames, self._levels[:count])
        self._pending, self._levels = self._pending[framing.shift :], self._levels[count:]
        self._num_levels += count
        return window

    @property
    def finished(self) -> bool:
        """True when the audio has ended and all of it has been taken."""
        return self._remaining == 0

    def _extend(self, samples: np.ndarray, *, last: bool) -> None:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        self._append(self._features.accept(samples))

    def _append(self, features: np.ndarray) -> None:
        self._num_features += len(features)
        self._pending = np.concatenate([self._pending, features])
        self._levels = np.concatenate([self._levels, self._features.levels])


def log_probs_of(stepper: Stepper, windows: Iterable[Window]) -> Float[np.ndarray, "frames vocab"]:
    """The log-probabilities of a recording, by a stepper of one stream, which begins anew."""
    stepper.reset()
    chunks = [
        stepper(window.features[None], np.full(1, window.num_frames, np.int32))[0, : window.num_frames]
        for window in windows
    ]
    return np.concatenate(chunks)


def windows_of(framing: Framing, samples: Float[np.ndarray, " samples"]) -> Iterator[Window]:
    """The windows of a whole recording at the network's rate."""
    windows = Windows(framing)
    windows.accept(samples)
    windows.end()
    while (window := windows.next_window()) is not None:
        yield window
