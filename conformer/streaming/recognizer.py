"""Recognition of one stream after the other."""

from typing import Any

from conformer.streaming.pool import StreamPool
from conformer.streaming.stepper import Stepper
from conformer.streaming.transcript import Segment, Word
from conformer.tokenizer import Tokenizer


class Recognizer:
    """Text of a stream while it is spoken.

        recognizer = Recognizer(Engine(config, model), tokenizer)
        for samples in microphone:
            print(recognizer.accept(samples))
        print(recognizer.finish())

    The network sees a chunk at a time and what its state remembers, which has a constant size, whatever the length of
    the stream. So has everything else where there is an `endpoint` and segments are taken (`take_segments`); otherwise
    the text grows.
    """

    def __init__(self, stepper: Stepper, tokenizer: Tokenizer, **stream_options: Any):
        """`stream_options` are those of `Stream`: sample_rate, decoder, endpoint, confidence, min_confidence,
        num_alternatives."""
        self._pool, self._stream_options = StreamPool(stepper, tokenizer), stream_options
        self.stream = self._pool.open(**stream_options)
        self.num_steps = 0  # chunks encoded

    def reset(self) -> None:
        """Begins the next stream; nothing is compiled again."""
        self._pool.abandon(self.stream)
        self.stream = self._pool.open(**self._stream_options)

    def accept(self, samples: Any, sample_rate: int | None = None) -> str:
        """Takes the next samples, any number of them, and returns the text so far. Raises StreamError."""
        self.stream.accept(samples, sample_rate)
        return self._advance()

    def finish(self) -> str:
        """Ends the stream and returns the text. May be called again."""
        self.stream.end()
        return self._advance()

    def take_segments(self) -> list[Segment]:
        """Returns the segments that are over, and forgets them (see `Transcript.take_segments`)."""
        return self.stream.transcript.take_segments()

    @property
    def text(self) -> str:
        """The text recognised so far, less the segments taken."""
        return self.stream.transcript.text

    @property
    def words(self) -> list[Word]:
        """The words of the text, with their times."""
        return self.stream.transcript.words

    @property
    def segments(self) -> list[Segment]:
        """The segments that are over and not taken: those before the last endpoint, all of them after `finish`."""
        return self.stream.transcript.segments

    def _advance(self) -> str:
        while advanced := self._pool.step():
            self.num_steps += advanced
        return self.text
