"""Many streams stepped as one batch; they join and leave at any time, and nothing is compiled again."""

from typing import Any

import numpy as np

from conformer.config import Config
from conformer.model import ConformerCTC
from conformer.streaming.engine import Engine
from conformer.streaming.stream import Stream, StreamError
from conformer.tokenizer import Tokenizer


class StreamPool:
    """A fixed number of slots that streams hold from `open` until they have finished.

    pool = StreamPool(config, model, tokenizer, batch_size=32)
    stream = pool.open()
    stream.accept(samples)  # of any stream, in any order
    pool.step()             # encodes one chunk of every stream that has one
    stream.end()
    """

    def __init__(
        self,
        config: Config,
        model: ConformerCTC,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        chunk_size: int = 16,
        num_left_chunks: int = 4,
    ):
        self._config, self._tokenizer = config, tokenizer
        self._engine = Engine(
            config, model, chunk_size=chunk_size, num_left_chunks=num_left_chunks, batch_size=batch_size
        )
        self._slots: list[Stream | None] = [None] * batch_size
        self._fresh = np.zeros(batch_size, bool)

    @property
    def num_streams(self) -> int:
        """Slots in use."""
        return sum(stream is not None for stream in self._slots)

    def open(self, **stream_options: Any) -> Stream:
        """A new stream in a free slot; options as `Stream`'s. Raises StreamError when every slot is taken."""
        if None not in self._slots:
            raise StreamError(f"all {len(self._slots)} slots are taken: end a stream, or make a larger pool")
        slot = self._slots.index(None)
        stream = Stream(self._config, self._tokenizer, chunk_size=self._engine.chunk_size, **stream_options)
        self._slots[slot], self._fresh[slot] = stream, True
        return stream

    def step(self) -> int:
        """Encodes the next chunk of every stream that has one, and frees the slots of those that have finished.

        Returns the number of streams advanced; 0 means that all wait for audio.
        """
        engine = self._engine
        windows = np.zeros((engine.batch_size, engine.window, engine.num_mel_bins), np.float32)
        num_frames = np.zeros(engine.batch_size, np.int32)
        for slot, stream in enumerate(self._slots):
            if stream is not None and (window := stream.next_window()) is not None:
                windows[slot], num_frames[slot] = window
        if num_frames.any():
            log_probs = engine(windows, num_frames, self._fresh & (num_frames > 0))
            self._fresh &= num_frames == 0
        for slot, stream in enumerate(self._slots):
            if stream is None:
                continue
            if num_frames[slot]:
                stream.decode(log_probs[slot, : num_frames[slot]])
            if stream.finished:
                self._slots[slot] = None
        return int((num_frames > 0).sum())
