"""Decoding by libsndfile: of files that have been examined, and of WAV streams while they are written."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np
import soundfile

from conformer.containers import assemble, behind_tags, examine
from conformer.containers.chunks import audio_bytes, block_bytes, check_next
from conformer.containers.errors import ContainerError, TruncatedError
from conformer.containers.stream import Stream
from kernels.typing import Float

_RATES = (100, 1_000_000)  # Hz, that a header may give
# Formats whose end is checked. Of others, libsndfile would read a cut file without an error.
_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "SVX", "CAF", "AU", "NIST", "FLAC", "OGG", "MP3")
SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}


def temporary_file() -> BinaryIO:
    """Returns a temporary file without a buffer, so that libsndfile reads all that was written to it."""
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))


class _Forward(soundfile.SoundFile):
    """A file read from start to end. The library would seek after every block, where MP3 then loses its state."""

    def seekable(self) -> bool:
        return False


def sound_files(file: BinaryIO) -> Iterator[soundfile.SoundFile]:
    """Yields the file, or those to decode in its place, open for decoding. Raises ContainerError."""
    size = os.fstat(file.fileno()).st_size
    if start := behind_tags(file):
        with temporary_file() as rest:
            assemble(file, [(start, size)], rest)
            yield from sound_files(rest)
        return
    for parts in examine(file, size) or [None]:
        with contextlib.ExitStack() as stack:
            if parts is None:
                part = file
            else:
                part = stack.enter_context(temporary_file())
                assemble(file, parts, part)
            os.lseek(part.fileno(), 0, os.SEEK_SET)
            sound = stack.enter_context(_Forward(part.fileno(), closefd=False))
            _check_format(sound)
            yield sound


def decode_file(sound: soundfile.SoundFile, block_seconds: float) -> Iterator[Float[np.ndarray, "frames channels"]]:
    size, read = max(1, int(block_seconds * sound.samplerate)), 0
    # No more than is promised: a decoder of FLAC would take what follows, such as a tag, for damage.
    while len(block := sound.read(min(size, sound.frames - read), dtype="float32", always_2d=True)):
        read += len(block)
        yield block
    if read < sound.frames:
        raise TruncatedError


def _check_format(sound: soundfile.SoundFile) -> None:
    if sound.format not in _FORMATS:
        raise ContainerError(f"is {sound.format_info}, whose end cannot be told: convert it to FLAC")
    if not _RATES[0] <= sound.samplerate <= _RATES[1]:
        raise ContainerError(f"its header gives {sound.samplerate} Hz, which is no rate of speech: write it again")


def layout_of(head: bytes) -> soundfile.SoundFile | None:
    """Returns the format that the header of a WAV stream gives for its samples, as a closed SoundFile.

    None: samples are not plain, or the whole file must be seen to tell.
    """
    with temporary_file() as copy, contextlib.suppress(soundfile.LibsndfileError):
        copy.write(head[:-4] + bytes(4))  # the size of the audio, of which there is none
        os.lseek(copy.fileno(), 0, os.SEEK_SET)
        with soundfile.SoundFile(copy.fileno(), closefd=False) as sound:
            _check_format(sound)
            if block_bytes(head) == SAMPLE_BYTES.get(sound.subtype, 0) * sound.channels:
                return sound
    return None


def decode_stream(
    file: Stream, head: bytes, layout: soundfile.SoundFile, block_seconds: float
) -> Iterator[Float[np.ndarray, "frames channels"]]:
    frame = SAMPLE_BYTES[layout.subtype] * layout.channels
    left, size = audio_bytes(head), frame * max(1, int(block_seconds * layout.samplerate))
    raw = dict(samplerate=layout.samplerate, channels=layout.channels, subtype=layout.subtype, format="RAW")
    endian = "BIG" if head[:4] == b"RIFX" else "LITTLE"
    while data := file.read(size if left is None else min(size, left)):
        if left is not None:
            left -= len(data)
        whole = io.BytesIO(data[: len(data) // frame * frame])
        if whole.getbuffer().nbytes:
            yield soundfile.read(whole, dtype="float32", always_2d=True, endian=endian, **raw)[0]
    if left:
        raise TruncatedError
    if left == 0:
        check_next(head, file)
