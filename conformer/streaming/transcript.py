"""The second half of a stream: log-probabilities in, tokens, words and segments out."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from conformer.decode.greedy import Decoder, GreedyDecoder, Token
from conformer.tokenizer import SPACE_SYMBOL, Tokenizer
from kernels.typing import Float


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """When a segment of a stream is taken to be over. Silence is time without a new token.

    A segment that grows too long ends at its last word boundary, and what follows is recognised as if it had not.
    """

    silence_after_speech: float = 1.2  # seconds, once something has been recognised
    silence_at_start: float = 5.0  # seconds, before anything has been
    longest: float = 30.0  # seconds a segment may last, up to a word boundary
    grace: float = 10.0  # seconds that it may wait for one; then it ends inside a word


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


class Transcript:
    """The text of a stream as it grows.

    Args:
        frame_seconds: from an encoder frame to the next.
        decoder: makes the decoder.
        endpoint: when a segment ends; None = only with the stream.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        frame_seconds: float,
        *,
        decoder: Callable[[], Decoder] = GreedyDecoder,
        endpoint: EndpointConfig | None = None,
    ):
        self._tokenizer, self._frame_seconds = tokenizer, frame_seconds
        self._decoder, self._endpoint = decoder(), endpoint
        self._segment_start = 0  # encoder frame at which the current segment began
        self._num_frames = 0  # encoder frames decoded
        self.audio_seconds = math.inf  # no time is later: once the audio has ended, frames of silence follow it
        self.segments: list[Segment] = []  # those that are over and have not been taken

    def decode(self, log_probs: Float[np.ndarray, "frames vocab"]) -> None:
        """Takes the next frames; ends the segment where there is an endpoint."""
        self._decoder.step(log_probs)
        self._num_frames += len(log_probs)
        if self._at_endpoint():
            self._end_segment()
        elif self._endpoint is not None and self._seconds_since(self._segment_start) >= self._endpoint.longest:
            self._cut_at_boundary()

    def finish(self) -> None:
        """No more frames will come: ends the last segment."""
        self._end_segment()

    @property
    def tokens(self) -> list[Token]:
        """Of the current segment; `frame` counts from the start of the stream."""
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
        return [word for segment in self.segments for word in segment.words] + self._words(self.tokens)

    def _words(self, tokens: list[Token]) -> list[Word]:
        words: list[Word] = []
        group: list[Token] = []
        for token in [*tokens, None]:
            if group and (token is None or self._starts_word(token)):
                text = self._tokenizer.decode([t.id for t in group])
                if text:
                    spoken = [t for t in group if self._tokenizer.symbols[t.id] != SPACE_SYMBOL]
                    words.append(Word(text, self._seconds(spoken[0].frame), self._seconds(spoken[-1].frame + 1)))
                group = []
            if token is not None:
                group.append(token)
        return words

    def _starts_word(self, token: Token) -> bool:
        return self._tokenizer.symbols[token.id].startswith(SPACE_SYMBOL)

    def _seconds(self, frame: int) -> float:
        return round(min(frame * self._frame_seconds, self.audio_seconds), 3)

    def _seconds_since(self, frame: int) -> float:
        return (self._num_frames - frame) * self._frame_seconds

    def _at_endpoint(self) -> bool:
        if self._endpoint is None:
            return False
        tokens = self.tokens
        silence = self._seconds_since(tokens[-1].frame + 1 if tokens else self._segment_start)
        allowed = self._endpoint.silence_after_speech if tokens else self._endpoint.silence_at_start
        length = self._seconds_since(self._segment_start)
        return silence >= allowed or length >= self._endpoint.longest + self._endpoint.grace

    def _cut_at_boundary(self) -> None:
        """Ends the segment before the last word that has begun for certain, if another is before it."""
        tokens, stable = self.tokens, self._decoder.num_stable
        starts = [index for index in range(1, stable) if self._starts_word(tokens[index])]
        if starts:
            before, behind = tokens[starts[-1] - 1], tokens[starts[-1]]
            self._add_segment(tokens[: starts[-1]], (before.frame + 1 + behind.frame) // 2)
            self._decoder.forget(starts[-1])

    def _end_segment(self) -> None:
        self._decoder.finish()
        self._add_segment(self.tokens, self._num_frames)
        self._decoder.restart()

    def _add_segment(self, tokens: list[Token], end: int) -> None:
        """Keeps a segment that ends before a frame, unless it has no words."""
        if words := self._words(tokens):
            text = self._tokenizer.decode([token.id for token in tokens])
            self.segments.append(Segment(text, tuple(words), self._seconds(self._segment_start), self._seconds(end)))
        self._segment_start = end
