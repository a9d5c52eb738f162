"""Recognition of one stream."""

from typing import Any

import numpy as np

from conformer.config import Config
from conformer.model import ConformerCTC
from conformer.streaming.engine import Engine
from conformer.streaming.stream import Segment, Stream, Word
from conformer.tokenizer import Tokenizer
from kernels.typing import Float


class Recognizer:
    """Text of a stream while it is spoken.

        recognizer = Recognizer(config, model, tokenizer)
        for samples in microphone:
            print(recognizer.accept(samples))
        print(recognizer.finish())

    The encoder sees `chunk_size` frames at a time and `num_left_chunks` chunks before them; its state has a constant
    size, whatever the length of the stream. So has everything else where there is an `endpoint` and segments are taken
    (`take_segments`); otherwise the text grows.
    """

    def __init__(
        self,
        config: Config,
        model: ConformerCTC,
        tokenizer: Tokenizer,
        *,
        chunk_size: int = 16,
        num_left_chunks: int = 4,
        **stream_options: Any,
    ):
        """`stream_options` are those of `Stream`: sample_rate, decoder, endpoint."""
        self._engine = Engine(config, model, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
        self._new_stream = lambda: Stream(config, tokenizer, chunk_size=chunk_size, **stream_options)
        self.stream = self._new_stream()
        self.num_steps = 0  # chunks encoded

    def warm_up(self) -> None:
        """Compiles ahead of the first audio."""
        self._engine.warm_up()

    def reset(self) -> None:
        """Begins the next stream; nothing is compiled again."""
        self._engine.reset()
        self.stream = self._new_stream()

    def accept(self, samples: Float[np.ndarray, " samples"], sample_rate: int | None = None) -> str:
        """Takes the next samples, any number of them, and returns the text so far. Raises StreamError."""
        self.stream.accept(samples, sample_rate)
        return self._advance()

    def finish(self) -> str:
        """Ends the stream and returns the text. May be called again."""
        self.stream.end()
        return self._advance()

    def take_segments(self) -> list[Segment]:
        """Hands over the segments that are over, and forgets them (see `Stream.take_segments`)."""
        return self.stream.take_segments()

    @property
    def text(self) -> str:
        """What has been recognised so far, less the segments taken."""
        return self.stream.text

    @property
    def words(self) -> list[Word]:
        """The words of the text, with their times."""
        return self.stream.words

    @property
    def segments(self) -> list[Segment]:
        """The segments that are over and not taken: those before the last endpoint, all of them after `finish`."""
        return self.stream.segments

    @property
    def window(self) -> int:
        """Feature frames that a chunk needs: its own, and the front end's look-ahead."""
        return self._engine.window

    @property
    def state_bytes(self) -> int:
        """Bytes of the encoder's state."""
        return self._engine.state_bytes

    def _advance(self) -> str:
        while (window := self.stream.next_window()) is not None:
            log_probs = self._engine(window.features[None], np.full(1, window.num_frames, np.int32))
            self.num_steps += 1
            self.stream.decode(log_probs[0, : window.num_frames])
        return self.text
