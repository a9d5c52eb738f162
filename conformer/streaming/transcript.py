"""The second half of a stream: log-probabilities in, tokens, words and segments out."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from conformer.decode.alternatives import Alternative, alternatives
from conformer.decode.confidence import UNCALIBRATED, Confidence, Peaks, group_words
from conformer.decode.greedy import Decoder, GreedyDecoder, Token
from conformer.decode.track import Track
from conformer.streaming.alignment import CONTEXT, REACH, Span, align_words
from conformer.streaming.stepper import Framing
from conformer.tokenizer import SPACE_SYMBOL, Tokenizer
from kernels.typing import Float


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """The rules by which a segment of a stream ends. Silence is time without a new token.

    A segment that grows too long ends at its last word boundary; this changes nothing in what is recognised after it.
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
    confidence: float  # probability that it is right (`Confidence`)


class TimedToken(NamedTuple):
    """A unit that was recognised."""

    symbol: str
    time: float  # seconds from the start of the stream at which it was emitted, somewhere in its word
    probability: float  # the largest that it had


class Segment(NamedTuple):
    """A stretch of a stream between two endpoints."""

    text: str
    words: tuple[Word, ...]
    start: float  # seconds from the start of the stream; its words were emitted since, the first may begin before
    end: float
    confidence: float  # share of its words that are expected to be right
    tokens: tuple[TimedToken, ...]
    alternatives: tuple[Alternative, ...] = ()  # the best first, the text itself among them; where they were asked for

    def as_dict(self) -> dict[str, Any]:
        """Returns the segment as dictionaries and lists, for JSON."""
        lists = {"words": self.words, "tokens": self.tokens, "alternatives": self.alternatives}
        return self._asdict() | {name: [item._asdict() for item in items] for name, items in lists.items()}


class Transcript:
    """The text of a stream as it grows.

    Args:
        framing: of the frames that will come.
        decoder: makes the decoder.
        endpoint: when a segment ends; None = only with the stream.
        confidence: the model's calibration.
        min_confidence: segments that are less sure are left out, as if nothing had been said.
        num_alternatives: that a segment gets, at most; more than one needs a decoder that has more.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        framing: Framing,
        *,
        decoder: Callable[[], Decoder] = GreedyDecoder,
        endpoint: EndpointConfig | None = None,
        confidence: Confidence = UNCALIBRATED,
        min_confidence: float = 0.0,
        num_alternatives: int = 0,
    ):
        self._tokenizer, self._framing = tokenizer, framing
        self._decoder, self._endpoint = decoder(), endpoint
        self._confidence, self._min_confidence = confidence, min_confidence
        self._num_alternatives = num_alternatives
        self._peaks, self._levels = Peaks(), Track()
        self._spoken = 0  # feature frame at which the last word before the current segment ended
        self._segment_start = 0  # encoder frame at which the current segment began
        self._num_frames = 0  # encoder frames decoded
        self.audio_seconds = math.inf  # no time is later: once the audio has ended, frames of silence follow it
        self.segments: list[Segment] = []  # those that are over and have not been taken

    def decode(
        self, log_probs: Float[np.ndarray, "frames vocab"], levels: Float[np.ndarray, " feature_frames"]
    ) -> None:
        """Takes the next frames and the next levels (see `Window`).

        Ends the segment where there is an endpoint.
        """
        self._decoder.step(log_probs)
        self._peaks.add(log_probs)
        self._levels.add(levels)
        self._num_frames += len(log_probs)
        if self._at_endpoint():
            self._end_segment()
        elif self._endpoint is not None and self._seconds_since(self._segment_start) >= self._endpoint.longest:
            self._cut_at_boundary()

    def finish(self) -> None:
        """Ends the stream, and with it the last segment."""
        self._end_segment()

    @property
    def tokens(self) -> list[Token]:
        """The tokens of the current segment; `frame` counts from the start of the stream."""
        return self._decoder.tokens

    def take_segments(self) -> list[Segment]:
        """Returns the segments that are over, and forgets them: `text` and `words` are then those that follow.

        With an endpoint, a stream whose segments are taken keeps a constant size, however long it lasts.
        """
        segments, self.segments = self.segments, []
        return segments

    @property
    def text(self) -> str:
        """The text recognised so far, with every segment that has not been taken."""
        texts = [segment.text for segment in self.segments] + [self._tokenizer.decode([t.id for t in self.tokens])]
        return " ".join(text for text in texts if text)

    @property
    def words(self) -> list[Word]:
        """The words of the text, with their times."""
        return [word for segment in self.segments for word in segment.words] + self._words(self.tokens)

    def _words(self, tokens: list[Token], behind: Sequence[Token] = ()) -> list[Word]:
        """The words of tokens; those of `behind` follow them."""
        groups = group_words(tokens, self._tokenizer)
        followed = groups + group_words(behind, self._tokenizer)
        scale, start = self._framing.subsampling_factor, self._levels.start
        emissions = [Span(scale * g[0].frame - start, scale * (g[-1].frame + 1) - start) for _, g in followed]
        spans = align_words(self._levels.values, emissions, max(self._spoken - start, 0))[: len(groups)]
        confidences = self._confidence.of(self._peaks.evidence([group for _, group in groups])).tolist()
        words = []
        for (text, _), span, confidence in zip(groups, spans, confidences, strict=True):
            first, last = (self._seconds((start + frame) / scale) for frame in span)
            words.append(Word(text, first, last, round(confidence, 4)))
        return words

    def _starts_word(self, token: Token) -> bool:
        return self._tokenizer.symbols[token.id].startswith(SPACE_SYMBOL)

    def _seconds(self, frame: int | float) -> float:
        return round(min(frame * self._framing.frame_seconds, self.audio_seconds), 3)

    def _seconds_since(self, frame: int) -> float:
        return (self._num_frames - frame) * self._framing.frame_seconds

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
            self._add_segment(tokens[: starts[-1]], (before.frame + 1 + behind.frame) // 2, tokens[starts[-1] :])
            self._decoder.forget(starts[-1])

    def _end_segment(self) -> None:
        self._decoder.finish()
        others = alternatives(self._decoder, self._tokenizer, self._num_alternatives)
        self._add_segment(self.tokens, self._num_frames, others=others)
        self._decoder.restart()

    def _add_segment(
        self, tokens: list[Token], end: int, behind: Sequence[Token] = (), others: Sequence[Alternative] = ()
    ) -> None:
        """Keeps a segment that ends before a frame, unless it has no words, or is not sure of them."""
        scale = self._framing.subsampling_factor
        if words := self._words(tokens, behind):
            self._spoken = round(words[-1].end / self._framing.frame_seconds * scale)
            segment = self._segment(tokens, words, end, others)
            if segment.confidence >= self._min_confidence:
                self.segments.append(segment)
        self._levels.forget(min(scale * self._num_frames - CONTEXT, scale * end - REACH))
        self._peaks.forget(end)
        self._segment_start = end

    def _segment(self, tokens: list[Token], words: list[Word], end: int, others: Sequence[Alternative]) -> Segment:
        text = self._tokenizer.decode([token.id for token in tokens])
        start, stop = self._seconds(self._segment_start), self._seconds(end)
        confidence = round(sum(word.confidence for word in words) / len(words), 4)
        timed = tuple(self._timed(token) for token in tokens)
        return Segment(text, tuple(words), start, stop, confidence, timed, tuple(others))

    def _timed(self, token: Token) -> TimedToken:
        probability = round(math.exp(self._peaks.of(token)), 4)
        return TimedToken(self._tokenizer.symbols[token.id], self._seconds(token.frame), probability)
