"""Recognition of utterances as streams: errors, and how long a user waits."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from conformer.audio import AudioError
from conformer.data import Utterance
from conformer.decode.greedy import Decoder, GreedyDecoder
from conformer.evaluation.offline import Transcripts
from conformer.streaming import Recognizer, Stepper
from conformer.tokenizer import Tokenizer

BLOCK_SECONDS = 0.1  # audio handed over at a time, as a sound card would


class Timing(NamedTuple):
    """The times of a stream, in seconds."""

    audio: float  # recognised
    compute: float  # spent on it, features and decoding included
    per_chunk: tuple[float, float, float]  # 50th, 95th and 99th percentile of what a chunk takes
    wait_for_audio: float  # from a word's end to the last sample that its chunk needs, at most: chunk + look-ahead

    @property
    def real_time_factor(self) -> float:
        """Computation per second of audio."""
        return self.compute / self.audio

    @property
    def latency(self) -> float:
        """The longest delay that a user perceives: the wait for audio, then the computation (95th percentile)."""
        return self.wait_for_audio + self.per_chunk[1]


def transcribe_streaming(
    stepper: Stepper,
    tokenizer: Tokenizer,
    utterances: Iterable[Utterance],
    *,
    decoder: Callable[[], Decoder] = GreedyDecoder,
) -> tuple[Transcripts, Timing]:
    """Recognises each utterance as a stream of its own, one after the other."""
    features = stepper.framing.features
    rate = features.sample_rate
    stepper.warm_up()
    recognizer = Recognizer(stepper, tokenizer, decoder=decoder)
    done, texts, broken = [], [], {}
    audio, compute, chunks = 0.0, 0.0, []
    for utterance in utterances:
        try:
            samples = utterance.samples(rate)
        except (AudioError, OSError) as error:
            broken[utterance.id] = f"{utterance.id}: {error}"
            continue
        recognizer.reset()
        blocks = np.split(samples, range(int(BLOCK_SECONDS * rate), len(samples), int(BLOCK_SECONDS * rate)))
        for block in [*blocks, None]:
            steps, start = recognizer.num_steps, time.perf_counter()
            text = recognizer.finish() if block is None else recognizer.accept(block)
            elapsed = time.perf_counter() - start
            compute += elapsed
            if recognizer.num_steps > steps:
                chunks.append(elapsed / (recognizer.num_steps - steps))
        audio += len(samples) / rate
        done.append(utterance)
        texts.append(text)
    frame = features.frame_shift_ms / 1000
    wait = stepper.framing.window * frame + (features.frame_length_ms / 1000 - frame)
    return Transcripts(done, texts, broken, tokenizer.level), Timing(
        audio, compute, tuple(np.percentile(chunks, [50, 95, 99]).tolist()), wait
    )
