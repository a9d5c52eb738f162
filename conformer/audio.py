"""Reads audio: files, pipes, arrays and PCM bytes become float32 mono samples in [-1, 1) at one rate."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from conformer.containers import COPIED_BYTES, HEAD_BYTES, ContainerError, is_container, more_head
from conformer.containers.chunks import is_wave, read_header
from conformer.containers.decode import (
    decode_file,
    decode_stream,
    layout_of,
    sound_files,
    temporary_file,
)
from conformer.containers.stream import Ahead, Stream
from kernels.typing import Float, Int

INT16_SCALE = 32768.0  # the int16 value that stands for 1.0
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
_MAX_PEAK = 4.0  # decoders overshoot full scale a little; samples far beyond it were written on another scale
_MAX_CHANNELS = 8
RATES = 1_000, 1_000_000  # Hz that samples may come at: soxr never ends for NaN or infinity


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file and the remedy."""


def load_audio(path: str | os.PathLike, sample_rate: int) -> Float[np.ndarray, " samples"]:
    """Reads a whole audio file: the blocks of `read_audio` in one array. Raises AudioError as it does."""
    return np.concatenate(list(read_audio(path, sample_rate)))


def read_audio(
    path: str | os.PathLike, sample_rate: int, block_seconds: float = 10.0
) -> Iterator[Float[np.ndarray, " samples"]]:
    """Reads an audio file (WAV, AIFF, CAF, W64, AU, NIST, FLAC, Ogg Vorbis or Opus, MP3) or a pipe of one.

    Yields blocks of float32 mono samples at `sample_rate` (Hz). Channels are averaged. Where decoding or resampling
    overshoots, samples are clipped to [-1, 1). No more than a block is held in memory.

    Raises AudioError for a file that is missing, cannot be opened or read, is not audio, does not hold what its header
    promises, holds no samples, or holds NaN, infinity or samples far outside [-1, 1): before the first block where that
    can be told, otherwise behind the last good one.
    """
    with _open(path) as file:
        if _is_regular(file):
            yield from _read_file(file, _name(path), sample_rate, block_seconds)
        else:
            yield from read_stream(file, _name(path), sample_rate, block_seconds)


def read_stream(
    file: Stream, name: str, sample_rate: int, block_seconds: float
) -> Iterator[Float[np.ndarray, " samples"]]:
    """Reads audio as `read_audio` does, from a stream that cannot go back, such as a pipe. Errors give its `name`.

    WAV of plain samples is read while it is written; any other container is copied to a temporary file first.
    """
    with _reporting(name):
        head = file.read(HEAD_BYTES)
        head += file.read(more_head(head))
        if not head:
            raise AudioError(f"{name}: holds no samples: nothing was written to it")
        if not is_container(head):
            raise AudioError(f"{name}: cannot be decoded: it begins like no audio file that is read; convert it to WAV")
        if is_wave(head):
            head = read_header(Ahead(head, file))
            layout = layout_of(head)
            if layout is not None:
                return (yield from _read_samples(file, head, layout, name, sample_rate, block_seconds))
        with temporary_file() as copy:
            stream = Ahead(head, file)
            while data := stream.read(COPIED_BYTES):
                copy.write(data)
            yield from _read_file(copy, name, sample_rate, block_seconds)


def audio_seconds(path: str | os.PathLike) -> float:
    """The length of an audio file by its header, or by its frames where that leaves it open. Raises AudioError."""
    with _open(path) as file:
        if not _is_regular(file):
            raise AudioError(f"{_name(path)}: is a pipe, whose length cannot be told: name a file")
        with _reporting(_name(path)):
            return sum(part.frames / part.samplerate for part in sound_files(file))


def as_samples(samples: Any) -> Float[np.ndarray, " samples"]:
    """One channel of float32 samples in [-1, 1], of whatever a program may hold samples in.

    Accepts floats on that scale, int16 and int32 (divided by 2**15 and 2**31), lists of floats, and two-dimensional
    arrays of (samples, channels) or (channels, samples): channels are averaged where it is clear which axis they are,
    at most 8 of them beside more samples. Raises AudioError, which says what to do, for anything else.
    """
    try:
        array = np.asarray(samples)
    except (ValueError, TypeError) as error:
        raise AudioError(f"samples cannot be made an array ({error}): pass one of float32 samples") from None
    if array.ndim == 0:
        raise AudioError(f"samples are one {type(samples).__name__}: pass an array of float32, of shape (samples,)")
    if array.ndim == 2:
        if min(array.shape) > _MAX_CHANNELS or (min(array.shape) > 1 and max(array.shape) <= _MAX_CHANNELS):
            raise AudioError(
                f"samples of shape {array.shape}: it is not clear which axis the channels are: pass one channel"
            )
        channels = int(np.argmin(array.shape))
    elif array.ndim != 1:
        raise AudioError(f"samples of shape {array.shape}: pass one channel, an array of shape (samples,)")
    match array.dtype.kind, array.dtype.itemsize:
        case "f", _:
            floats = array.astype(np.float32)
        case "i", 2 | 4:
            floats = (array / 2.0 ** (8 * array.dtype.itemsize - 1)).astype(np.float32)
        case _:
            raise AudioError(f"samples of type {array.dtype}: their scale is not clear: pass float32 in [-1, 1)")
    _check_samples(floats, "samples")
    if array.ndim == 2:
        return floats.mean(axis=channels) if floats.size else floats.reshape(0)
    return floats


def check_rate(sample_rate: Any) -> None:
    """Raises AudioError for what is no rate, in Hz, of samples that a program passes."""
    if not (isinstance(sample_rate, int | float | np.integer | np.floating) and RATES[0] <= sample_rate <= RATES[1]):
        raise AudioError(
            f"sample_rate={sample_rate!r} is no number of Hz from {RATES[0]:,} to {RATES[1]:,}: correct it"
        )


def resample(
    samples: Float[np.ndarray, " samples"], from_rate: int | float, to_rate: int | float
) -> Float[np.ndarray, " resampled"]:
    """Band-limited resampling (soxr) to about samples * to_rate / from_rate float32 samples; rates in Hz.

    Raises AudioError for a rate that is not positive.
    """
    if not (from_rate > 0 and to_rate > 0):
        raise AudioError(f"cannot resample from {from_rate} Hz to {to_rate} Hz: sample rates must be positive")
    samples = np.asarray(samples, np.float32)
    return samples if from_rate == to_rate else soxr.resample(samples, from_rate, to_rate)


def pcm16_to_float(data: bytes) -> Float[np.ndarray, " samples"]:
    """Samples of little-endian signed 16-bit mono PCM, divided by `INT16_SCALE`.

    Raises AudioError for half a sample: a reader of a stream keeps an odd byte back for the next piece.
    """
    if len(data) % 2:
        raise AudioError(f"{len(data)} bytes of 16-bit PCM end inside a sample: pass an even number of bytes")
    return np.frombuffer(data, "<i2").astype(np.float32) / INT16_SCALE


def float_to_pcm16(samples: Float[np.ndarray, " samples"]) -> Int[np.ndarray, " samples"]:
    """Samples in [-1, 1) as int16, rounded and clipped."""
    return np.clip(np.round(samples * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)


def _check_samples(samples: np.ndarray, name: str) -> None:
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: holds NaN or infinite samples: write it again from its source")
    if samples.size and (peak := float(np.abs(samples).max())) > _MAX_PEAK:
        raise AudioError(f"{name}: samples reach {peak:g}, full scale is 1: write it again scaled to [-1, 1)")


def _name(path: str | os.PathLike) -> str:
    """A path as messages show it, whatever its bytes."""
    return os.fsencode(path).decode(errors="backslashreplace")


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[BinaryIO]:
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        message = "no such audio file: correct the path, or remove the entry that names it"
        raise AudioError(f"{_name(path)}: {message}") from None
    except IsADirectoryError:
        raise AudioError(f"{_name(path)}: no such audio file, it is a folder: name a file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{_name(path)}: cannot be opened ({reason}): correct the path or the permissions") from None
    with file:
        yield file


def _is_regular(file: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


@contextlib.contextmanager
def _reporting(name: str) -> Iterator[None]:
    """Turns the errors of files and decoders that occur inside into AudioError."""
    try:
        yield
    except ContainerError as error:
        raise AudioError(f"{name}: {error}") from None
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{name}: cannot be decoded ({error.error_string.rstrip('.')}): "
            "it is truncated, or not audio that libsndfile reads; fetch it again, or convert it to FLAC"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise AudioError(f"{name}: cannot be read ({reason}): check the disk or the connection, try again") from None


def _read_file(
    file: BinaryIO, name: str, sample_rate: int, block_seconds: float
) -> Iterator[Float[np.ndarray, " samples"]]:
    """The samples of a file that can be read anywhere."""
    given = 0
    with _reporting(name):
        for sound in sound_files(file):
            for samples in _deliver(decode_file(sound, block_seconds), sound.samplerate, sample_rate, name):
                given += len(samples)
                yield samples
    if not given:
        raise AudioError(f"{name}: holds no samples (empty, or cut in its first block): remove it or fetch it again")


def _read_samples(
    file: Stream, head: bytes, layout: soundfile.SoundFile, name: str, sample_rate: int, block_seconds: float
) -> Iterator[Float[np.ndarray, " samples"]]:
    """The samples that follow the header of a WAV stream, as they come."""
    given = 0
    for samples in _deliver(decode_stream(file, head, layout, block_seconds), layout.samplerate, sample_rate, name):
        given += len(samples)
        yield samples
    if not given:
        raise AudioError(f"{name}: holds no samples: it ended behind its header")


def _deliver(
    blocks: Iterator[Float[np.ndarray, "frames channels"]], rate: int, sample_rate: int, name: str
) -> Iterator[Float[np.ndarray, " samples"]]:
    """Blocks of one rate as mono samples of another, in [-1, 1)."""
    resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1)
    for channels in blocks:
        _check_samples(channels, name)
        samples = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
        if resampler is not None:
            samples = resampler.resample_chunk(samples)
        if samples.size:
            yield np.clip(samples, -1.0, _BELOW_ONE)
    if resampler is not None and (rest := resampler.resample_chunk(np.zeros(0, np.float32), last=True)).size:
        yield np.clip(rest, -1.0, _BELOW_ONE)
