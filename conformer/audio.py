"""Audio in: files and PCM bytes become float32 mono samples in [-1, 1) at one rate."""

import os
import pathlib
import struct
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from kernels.typing import Float, Int

INT16_SCALE = 32768.0  # the int16 value that stands for 1.0
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
_MAX_PEAK = 4.0  # decoders overshoot full scale a little; samples far beyond it were written on another scale
_RIFF_SLACK = 8  # bytes; some writers count the 8-byte header in the size that excludes it
_RIFF_UNKNOWN = 0x7FFF_0000  # a writer to a pipe cannot know the size and stores something above this
_OGG_PAGE = 65_307  # bytes, the longest page


class AudioError(ValueError):
    """Audio that cannot be used; the message names the file and the remedy."""


def load_audio(path: str | os.PathLike, sample_rate: int) -> Float[np.ndarray, " samples"]:
    """Reads a whole audio file: the blocks of `read_audio` in one array. Raises AudioError as it does."""
    return np.concatenate(list(read_audio(path, sample_rate)))


def read_audio(
    path: str | os.PathLike, sample_rate: int, block_seconds: float = 10.0
) -> Iterator[Float[np.ndarray, " samples"]]:
    """Reads an audio file (WAV, FLAC, Ogg Vorbis or Opus, MP3) in blocks: float32 mono samples at `sample_rate` (Hz).

    Channels are averaged. Where decoding or resampling overshoots, samples are clipped to [-1, 1). No more than a block
    is held in memory.

    Raises AudioError for a file that is missing, is not audio, is truncated, holds no samples, or holds NaN, infinity
    or samples far outside [-1, 1): before the first block where that can be told, otherwise behind the last good one.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file: correct the path, or remove the entry that names it")
    truncated = AudioError(f"{path}: truncated, it ends before the length in its header: fetch or write it again")
    read = given = 0  # frames of the file, samples handed over
    try:
        with soundfile.SoundFile(path) as file:
            if _is_cut_wav(path) or _is_cut_ogg(path):
                raise truncated
            declared = file.frames
            resampler = None if file.samplerate == sample_rate else soxr.ResampleStream(file.samplerate, sample_rate, 1)
            size = max(1, int(block_seconds * file.samplerate))
            last = False
            while not last:
                channels = file.read(size, dtype="float32", always_2d=True)
                last, read = len(channels) < size, read + len(channels)
                samples = channels.mean(axis=1)
                _check_samples(samples, path)
                if resampler is not None:
                    samples = resampler.resample_chunk(samples, last=last)
                if samples.size:
                    given += len(samples)
                    yield np.clip(samples, -1.0, _BELOW_ONE)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: cannot be decoded ({error.error_string.rstrip('.')}): "
            "it is truncated, or not audio that libsndfile reads; fetch it again, or convert it to FLAC"
        ) from None
    if read < declared:
        raise truncated
    if not given:
        raise AudioError(f"{path}: holds no samples (empty, or cut in its first block): remove it or fetch it again")


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


def _check_samples(samples: Float[np.ndarray, " samples"], path: pathlib.Path) -> None:
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples: write it again from its source")
    if samples.size and (peak := float(np.abs(samples).max())) > _MAX_PEAK:
        raise AudioError(f"{path}: samples reach {peak:g}, full scale is 1: write it again scaled to [-1, 1)")


def _is_cut_wav(path: pathlib.Path) -> bool:
    """Whether a RIFF file is shorter than its header says; libsndfile reads such a file without a word."""
    with path.open("rb") as file:
        header = file.read(8)
    if len(header) < 8 or header[:4] != b"RIFF":
        return False
    (size,) = struct.unpack("<I", header[4:])
    return size < _RIFF_UNKNOWN and size + 8 - path.stat().st_size > _RIFF_SLACK


def _is_cut_ogg(path: pathlib.Path) -> bool:
    """Whether an Ogg file lacks the last page of its stream, or a part of it (RFC 3533, section 6)."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, path.stat().st_size - _OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27 or not page[5] & 4:  # the flag that ends a stream
        return True
    segments = page[26]
    return len(page) < 27 + segments + sum(page[27 : 27 + segments])
