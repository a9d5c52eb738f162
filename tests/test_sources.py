"""Live audio: what pipes and microphones hand over, and what is said where they cannot."""

import io
import struct
import sys
import time
import types

import numpy as np
import pytest
import soundfile

from conformer.audio import AudioError, load_audio
from conformer.streaming.sources import BLOCK_SECONDS, pace, read_pcm, record_microphone

RATE = 8_000
BLOCK = int(BLOCK_SECONDS * RATE)


def read(folder, data: bytes) -> list[np.ndarray]:
    (folder / "input").write_bytes(data)
    with (folder / "input").open("rb") as file:
        return list(read_pcm(file, RATE))


@pytest.mark.parametrize("samples", [0, 1, BLOCK, BLOCK + 1, 5 * BLOCK - 1])
def test_a_pipe_gives_every_sample_in_blocks(tmp_path, samples):
    values = np.random.default_rng(0).integers(-32_768, 32_768, samples).astype("<i2")
    blocks = read(tmp_path, values.tobytes())
    assert [len(block) for block in blocks[:-1]] == [BLOCK] * (len(blocks) - 1)
    np.testing.assert_array_equal(np.concatenate([np.zeros(0), *blocks]) * 32_768, values)


@pytest.mark.parametrize("samples", [0, 1, BLOCK, 2 * BLOCK + 7])
def test_a_pipe_that_stops_inside_a_sample_loses_that_byte_alone(tmp_path, samples):
    values = np.arange(samples, dtype="<i2")
    with pytest.warns(UserWarning, match="ends inside a sample: its last byte is dropped"):
        blocks = read(tmp_path, values.tobytes() + b"\1")
    np.testing.assert_array_equal(np.concatenate(blocks) * 32_768, values)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64"])
def test_a_file_of_any_kind_and_rate_is_recognised(tmp_path, name):
    samples = np.random.default_rng(0).normal(0, 0.1, (48_000, 2))
    soundfile.write(tmp_path / name, samples, 48_000)
    heard = np.concatenate(read(tmp_path, (tmp_path / name).read_bytes()))
    np.testing.assert_allclose(heard, load_audio(tmp_path / name, RATE), atol=1e-6)


def test_what_cannot_be_decoded_is_no_pcm_either(tmp_path):
    for head in (b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypM4A ", b"ID3\4\0\0\0\0\0\0"):
        with pytest.raises(AudioError, match="standard input: cannot be decoded"):
            read(tmp_path, head + bytes(5_000))


def test_pcm_that_begins_like_a_frame_of_mp3_stays_pcm(tmp_path):
    data = struct.pack("<4h", -1025, -28_784, 5, 7) * 2_000
    assert sum(map(len, read(tmp_path, data))) == 8_000


def test_a_pipe_that_is_cut_gives_what_came_and_says_so(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    blocks = read_pcm(io.BytesIO((tmp_path / "a.wav").read_bytes()[:8_044]), RATE)
    heard = [next(blocks) for _ in range(5)]
    with pytest.raises(AudioError, match="standard input: truncated"):
        next(blocks)
    assert sum(map(len, heard)) == 4_000


def test_blocks_are_handed_over_no_sooner_than_they_are_spoken():
    start = time.perf_counter()
    waits = [time.perf_counter() - start for _ in pace(iter([np.zeros(40)] * 5), RATE)]
    assert all(waited >= 0.005 * number for number, waited in enumerate(waits, start=1))


# ------------------------------------------------------------------ microphone


class PortAudioError(Exception):
    """The error that the library raises."""


@pytest.fixture
def sounddevice(monkeypatch):
    """The library, with a microphone that says 0, 1, 2 ... and overflows before its third block."""
    module = types.SimpleNamespace(PortAudioError=PortAudioError, opened=None, closed=False)

    class InputStream:
        def __init__(self, **options):
            module.opened, self._blocks = options, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            module.closed = True

        def read(self, size):
            self._blocks += 1
            return np.full((size, 1), self._blocks - 1, np.float32), self._blocks == 3

    module.InputStream = InputStream
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_the_microphone_gives_mono_blocks_and_is_closed_again(sounddevice):
    blocks = record_microphone(RATE)
    for number in range(2):
        np.testing.assert_array_equal(next(blocks), np.full(BLOCK, number, np.float32))
    with pytest.warns(UserWarning, match="audio of the microphone was lost"):
        next(blocks)
    assert (sounddevice.opened["samplerate"], sounddevice.opened["channels"], sounddevice.closed) == (RATE, 1, False)
    blocks.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert sounddevice.closed


def test_a_computer_without_a_microphone_says_so(sounddevice, monkeypatch):
    def fail(**_):
        raise PortAudioError("Error querying device -1")

    monkeypatch.setattr(sounddevice, "InputStream", fail)
    with pytest.raises(AudioError, match=r"at 8000 Hz \(Error querying device -1\): connect one"):
        next(record_microphone(RATE))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # what makes an import fail
    with pytest.raises(AudioError, match=r"pip install .*'\.\[microphone\]'"):
        next(record_microphone(RATE))


def test_a_missing_system_library_is_named(monkeypatch):
    class Finder:
        def find_spec(self, name, *_):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(AudioError, match="PortAudio library not found: install PortAudio"):
        next(record_microphone(RATE))
