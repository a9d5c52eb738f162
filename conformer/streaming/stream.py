"""The part of a stream that runs on the host: audio in, windows for the encoder out, tokens, words and segments."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import soxr

from conformer.config import Config
from conformer.decode.greedy import Decoder, GreedyDecoder, Token
from conformer.features import StreamingLogMel
from conformer.model.subsampling import lengths_of
from conformer.tokenizer import SPACE_SYMBOL, Tokenizer
from kernels.typing import Float


class StreamError(ValueError):
    """A stream used in a way that it cannot serve; the message says what to do instead."""


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """When a segment of a stream is taken to be over. Silence is time without a new token."""

    silence_after_speech: float = 1.2  # seconds, once something has been recognised
    silence_at_start: float = 5.0  # seconds, before anything has been
    longest: float = 30.0  # seconds a segment may last


class Word(NamedTuple):
    """A recognised word and when it was spoken, in seconds from the start of the stream."""

    text: str
    start: float
    end: float


class Segment(NamedTuple):
    """A stretch of a stream between two endpoints."""

    text: str
    words: tuple[Word, ...]
    start: float  # seconds from the start of the stream
    end: float


class Window(NamedTuple):
    """Features of one chunk, and how many encoder frames of it are valid."""

    features: Float[np.ndarray, "window mel"]
    num_frames: int


class Stream:
    """Audio of any length in, windows out; log-probabilities of their frames in, text out.

    Args:
        chunk_size: encoder frames in a window.
        sample_rate: of the audio that will come; None = the model's. Other rates are resampled as they come.
        decoder: makes the decoder of a segment.
        endpoint: when a segment ends; None = only with the stream.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        *,
        chunk_size: int,
        sample_rate: int | None = None,
        decoder: Callable[[], Decoder] = GreedyDecoder,
        endpoint: EndpointConfig | None = None,
    ):
        factor = config.model.subsampling_factor
        self._config, self._tokenizer, self._chunk_size = config, tokenizer, chunk_size
        self._lengths = lengths_of(config.model)
        self._window = self._lengths.window(chunk_size)
        self._shift = chunk_size * factor
        self._frame_seconds = factor * config.features.frame_shift_ms / 1000
        self._rate = sample_rate or config.features.sample_rate
        resampled = self._rate != config.features.sample_rate
        self._resampler = soxr.ResampleStream(self._rate, config.features.sample_rate, 1) if resampled else None
        self._features = StreamingLogMel(config.features)
        self._pending = np.zeros((0, config.features.num_mel_bins), np.float32)
        self._make_decoder, self._endpoint = decoder, endpoint
        self._decoder = decoder()
        self._segment_start = 0  # encoder frame at which the current segment began
        self._num_frames = 0  # encoder frames decoded
        self._remaining: int | None = None  # encoder frames still to come, once the audio has ended
        self.segments: list[Segment] = []  # those that are over and have not been taken
        self.num_samples = 0  # received, at the stream's rate

    # ------------------------------------------------------------------ audio in

    @property
    def audio_seconds(self) -> float:
        """Audio received so far."""
        return self.num_samples / self._rate

    def accept(self, samples: Float[np.ndarray, " samples"], sample_rate: int | None = None) -> None:
        """Takes the next samples, float in [-1, 1). Raises StreamError for audio that does not continue the stream."""
        if self._remaining is not None:
            raise StreamError("audio after the end of the stream: start a new stream for it")
        if sample_rate not in (None, self._rate):
            raise StreamError(
                f"the stream began at {self._rate} Hz and now sends {sample_rate} Hz: start a new stream for it"
            )
        if not np.isfinite(samples).all():
            raise StreamError("the audio holds values that are not finite: repair its source")
        self.num_samples += len(samples)
        self._extend(samples, last=False)

    def end(self) -> None:
        """No more audio will come. May be called again."""
        if self._remaining is not None:
            return
        self._extend(np.zeros(0, np.float32), last=True)
        self._pending = np.concatenate([self._pending, self._features.flush()])
        frames = self._lengths.output_lengths(len(self._pending))
        windows = math.ceil(frames / self._chunk_size)
        self._pending = np.pad(self._pending, ((0, windows * self._shift + self._window), (0, 0)))
        self._remaining = frames
        if frames == 0:
            self._end_segment()

    def _extend(self, samples: np.ndarray, *, last: bool) -> None:
        samples = samples.astype(np.float32)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        self._pending = np.concatenate([self._pending, self._features.accept(samples)])

    # --------------------------------------------------------------- windows out

    def next_window(self) -> Window | None:
        """The next chunk to encode; None until there is more audio, or when all of it has been encoded."""
        if self._remaining is None:
            num_frames = self._chunk_size if len(self._pending) >= self._window else 0
        else:
            num_frames = min(self._remaining, self._chunk_size)
            self._remaining -= num_frames
        if num_frames == 0:
            return None
        window = Window(self._pending[: self._window], num_frames)
        self._pending = self._pending[self._shift :]
        return window

    @property
    def finished(self) -> bool:
        """True when the audio has ended and all of it has been taken."""
        return self._remaining == 0

    # ------------------------------------------------------------------- text out

    def decode(self, log_probs: Float[np.ndarray, "frames vocab"]) -> None:
        """Takes the frames of a window; ends the segment where there is an endpoint."""
        self._decoder.step(log_probs)
        self._num_frames += len(log_probs)
        if self.finished or self._at_endpoint():
            self._end_segment()

    @property
    def tokens(self) -> list[Token]:
        """Of the current segment; `frame` counts from its start."""
        return self._decoder.tokens

    def take_segments(self) -> list[Segment]:
        """Hands over the segments that are over, and forgets them: with an endpoint, a stream whose segments are taken
        keeps a constant size, however long it lasts. Text and words are then those since.
        """
        segments, self.segments = self.segments, []
        return segments

    @property
    def text(self) -> str:
        """What has been recognised so far, every segment that has not been taken."""
        texts = [segment.text for segment in self.segments] + [self._tokenizer.decode([t.id for t in self.tokens])]
        return " ".join(text for text in texts if text)

    @property
    def words(self) -> list[Word]:
        """The words of the text, with their times."""
        return [word for segment in self.segments for word in segment.words] + self._words()

    def _words(self) -> list[Word]:
        words: list[Word] = []
        group: list[Token] = []
        for token in [*self.tokens, None]:
            starts_word = token is None or self._tokenizer.symbols[token.id].startswith(SPACE_SYMBOL)
            if starts_word and group:
                text = self._tokenizer.decode([t.id for t in group])
                if text:
                    spoken = [t for t in group if self._tokenizer.symbols[t.id] != SPACE_SYMBOL]
                    words.append(Word(text, self._seconds(spoken[0].frame), self._seconds(spoken[-1].frame + 1)))
                group = []
            if token is not None:
                group.append(token)
        return words

    def _seconds(self, frame: int) -> float:
        return round((self._segment_start + frame) * self._frame_seconds, 3)

    def _at_endpoint(self) -> bool:
        if self._endpoint is None:
            return False
        length = self._num_frames - self._segment_start
        last = self.tokens[-1].frame + 1 if self.tokens else 0
        silence = (length - last) * self._frame_seconds
        allowed = self._endpoint.silence_after_speech if self.tokens else self._endpoint.silence_at_start
        return silence >= allowed or length * self._frame_seconds >= self._endpoint.longest

    def _end_segment(self) -> None:
        self._decoder.finish()
        if words := self._words():
            text = self._tokenizer.decode([token.id for token in self.tokens])
            start, end = (round(n * self._frame_seconds, 3) for n in (self._segment_start, self._num_frames))
            self.segments.append(Segment(text, tuple(words), start, end))
        self._segment_start = self._num_frames
        self._decoder = self._make_decoder()
