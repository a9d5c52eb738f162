"""Many streams stepped as one batch; they join and leave at any time, and nothing is compiled again."""

from typing import Any

import numpy as np

from conformer.streaming.stepper import Framing, Stepper
from conformer.streaming.transcript import Transcript
from conformer.streaming.windows import StreamError, Windows
from conformer.tokenizer import Tokenizer

DECODED = 16  # frames of a whole recording that are decoded between two looks for an endpoint


class Stream:
    """Audio in and text out; a pool steps what lies between.

    Args:
        sample_rate: see `Windows`.
        transcript_options: see `Transcript`: decoder, endpoint, confidence,
            min_confidence, num_alternatives.
    """

    def __init__(
        self, framing: Framing, tokenizer: Tokenizer, *, sample_rate: int | None = None, **transcript_options: Any
    ):
        self.audio = Windows(framing, sample_rate)
        self.transcript = Transcript(tokenizer, framing, **transcript_options)

    def accept(self, samples: Any, sample_rate: int | None = None) -> None:
        """Takes the next samples, any number of them. Raises StreamError (see `Windows.accept`)."""
        self.audio.accept(samples, sample_rate)

    def end(self) -> None:
        """Ends the audio of the stream. May be called again."""
        self.audio.end()
        self.transcript.audio_seconds = self.audio.audio_seconds

    @property
    def finished(self) -> bool:
        """True when the audio has ended and all of it has been encoded."""
        return self.audio.finished


class StreamPool:
    """Gives each stream a slot of the stepper, from `open` until it has finished.

    pool = StreamPool(Engine(config, model, batch_size=32), tokenizer)
    stream = pool.open()
    stream.accept(samples)  # of any stream, in any order
    pool.step()             # encodes one chunk of every stream that has one
    stream.end()
    """

    def __init__(self, stepper: Stepper, tokenizer: Tokenizer):
        self._stepper, self._tokenizer = stepper, tokenizer
        self._slots: list[Stream | None] = [None] * stepper.batch_size
        self._fresh = np.zeros(stepper.batch_size, bool)

    @property
    def num_streams(self) -> int:
        """Slots in use."""
        return sum(stream is not None for stream in self._slots)

    def open(self, **stream_options: Any) -> Stream:
        """A new stream in a free slot; options as `Stream`'s. Raises StreamError when every slot is taken."""
        if None not in self._slots:
            raise StreamError(f"all {len(self._slots)} slots are taken: end a stream, or make a larger pool")
        slot = self._slots.index(None)
        stream = Stream(self._stepper.framing, self._tokenizer, **stream_options)
        self._slots[slot], self._fresh[slot] = stream, True
        return stream

    def abandon(self, stream: Stream) -> None:
        """Frees the slot of a stream whose end nobody waits for."""
        self._slots = [None if other is stream else other for other in self._slots]

    def step(self) -> int:
        """Encodes the next chunk of every stream that has one, and frees the slots of those that have finished.

        Returns the number of streams advanced; 0 means that all wait for audio.
        """
        framing, batch_size = self._stepper.framing, self._stepper.batch_size
        windows = np.zeros((batch_size, framing.window, framing.features.num_mel_bins), np.float32)
        num_frames = np.zeros(batch_size, np.int32)
        levels: list[Any] = [None] * batch_size
        for slot, stream in enumerate(self._slots):
            if stream is not None and (window := stream.audio.next_window()) is not None:
                windows[slot], num_frames[slot], levels[slot] = window
        if num_frames.any():
            log_probs = self._stepper(windows, num_frames, self._fresh & (num_frames > 0))
            self._fresh &= num_frames == 0
        for slot, stream in enumerate(self._slots):
            if stream is None:
                continue
            if count := min(num_frames[slot], framing.chunk_size):
                factor, size = framing.subsampling_factor, DECODED if framing.whole else count
                for start in range(0, count, size):
                    stop = min(start + size, count)
                    heard = levels[slot][start * factor : None if stop == count else stop * factor]
                    stream.transcript.decode(log_probs[slot, start:stop], heard)
            if stream.finished:
                stream.transcript.finish()
                self._slots[slot] = None
        return int((num_frames > 0).sum())
