"""Live audio: blocks of float32 samples in one row, at the rate asked for, until the source ends."""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from conformer.audio import AudioError, pcm16_to_float, read_stream
from conformer.containers import HEAD_BYTES, is_container, more_head
from conformer.containers.stream import Ahead, Stream
from kernels.typing import Float

BLOCK_SECONDS = 0.1  # of audio handed over at a time


def read_pcm(file: Stream, sample_rate: int) -> Iterator[Float[np.ndarray, " samples"]]:
    """Standard input: an audio file of any kind that `read_audio` reads, at its own rate, or else PCM.

    PCM is little-endian, signed, of 16 bits and one channel at `sample_rate`, such as
    `arecord -t raw -f S16_LE` writes. Warns of half a sample at its end, which is dropped. Raises AudioError as
    `read_audio` does.
    """
    head = file.read(HEAD_BYTES)
    head += file.read(more_head(head))
    stream = Ahead(head, file)
    if is_container(head):
        yield from read_stream(stream, "standard input", sample_rate, BLOCK_SECONDS)
        return
    while data := stream.read(2 * int(BLOCK_SECONDS * sample_rate)):
        if len(data) % 2:
            warnings.warn("the input ends inside a sample: its last byte is dropped", stacklevel=2)
        yield pcm16_to_float(data[: len(data) // 2 * 2])


def record_microphone(sample_rate: int) -> Iterator[Float[np.ndarray, " samples"]]:
    """The default microphone, without end. Warns of audio that is lost because it was not taken in time.

    Raises AudioError where there is no microphone, or the extra that reads it is not installed.
    """
    sounddevice = _import_sounddevice()
    size = int(BLOCK_SECONDS * sample_rate)
    try:
        with sounddevice.InputStream(samplerate=sample_rate, blocksize=size, channels=1, dtype="float32") as stream:
            while True:
                samples, overflowed = stream.read(size)
                if overflowed:
                    warnings.warn("the computer is too slow: audio of the microphone was lost", stacklevel=2)
                yield samples[:, 0]
    except sounddevice.PortAudioError as error:
        raise AudioError(
            f"the microphone cannot be read at {sample_rate} Hz ({error}): connect one, make it the default "
            "(python -m sounddevice lists them), or pipe its audio in with -"
        ) from None


def pace(blocks: Iterator[Float[np.ndarray, " samples"]], sample_rate: int) -> Iterator[Float[np.ndarray, " samples"]]:
    """Hands blocks over at the speed of speech: each when its last sample would have been spoken."""
    due = time.perf_counter()
    for block in blocks:
        due += len(block) / sample_rate
        time.sleep(max(0.0, due - time.perf_counter()))
        yield block


def _import_sounddevice() -> Any:
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise AudioError(
            "the microphone needs the package sounddevice: pip install -c requirements.lock -e '.[microphone]'"
        ) from None
    except OSError as error:  # the package is there, the system's library is not
        raise AudioError(f"the microphone: {error}: install PortAudio (Debian: apt install libportaudio2)") from None
    return sounddevice
