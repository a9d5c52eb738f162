"""conformer/audio.py: what files and bytes turn into, and what is said about those that cannot be used."""

import pathlib
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.audio import AudioError, load_audio, pcm16_to_float, resample

RATE = 16_000


def tone(frequency: float, rate: int = RATE, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def peak_frequency(samples: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


@pytest.mark.parametrize(("name", "tolerance"), [("a.wav", 1e-4), ("a.flac", 1e-4), ("a.ogg", 0.05), ("a.opus", 0.05)])
def test_reads_each_format(tmp_path, name, tolerance):
    subtype = "OPUS" if tolerance > 1e-3 else "PCM_16"
    soundfile.write(tmp_path / name, tone(440), RATE, subtype=subtype, format="OGG" if subtype == "OPUS" else None)
    samples = load_audio(tmp_path / name, RATE)
    assert samples.dtype == np.float32
    assert samples.shape == (RATE,)
    np.testing.assert_allclose(samples[800:-800], tone(440)[800:-800], atol=tolerance)


def test_channels_are_averaged(tmp_path):
    left, right = tone(440), tone(1000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "stereo.wav", RATE), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_is_resampled_to_the_rate_asked_for(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1000, rate), rate, subtype="FLOAT")
    samples = load_audio(tmp_path / "a.wav", RATE)
    assert abs(len(samples) - RATE) <= 1
    np.testing.assert_allclose(samples[1000:15_000], tone(1000)[1000:15_000], atol=2e-3)


def test_full_scale_stays_below_one(tmp_path):
    square = np.sign(tone(100, 8_000))
    soundfile.write(tmp_path / "a.wav", square, 8_000, subtype="FLOAT")
    samples = load_audio(tmp_path / "a.wav", RATE)  # resampling a square wave overshoots
    assert samples.min() == -1
    assert 0.999 < samples.max() < 1


def test_a_wav_written_to_a_pipe_is_read(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(440), RATE, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFF_FFFF)  # the sizes that ffmpeg leaves in a pipe
    path.write_bytes(data)
    assert load_audio(path, RATE).shape == (RATE,)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    path = tmp_path / name
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * RATE)
    opus = name == "a.opus"
    soundfile.write(path, noise, RATE, format="OGG" if opus else None, subtype="OPUS" if opus else None)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(AudioError) as error:
        load_audio(path, RATE)
    assert str(path) in str(error.value)
    assert "again" in str(error.value)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0), "no samples"),
        (np.array([0.1, np.nan, 0.1]), "NaN"),
        (np.array([0.1, -np.inf, 0.1]), "infinite"),
        (np.array([0.1, -20_000.0, 0.1]), "20000"),
    ],
)
def test_unusable_samples_are_refused(tmp_path, samples, words):
    path = tmp_path / "bad.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=words) as error:
        load_audio(path, RATE)
    assert str(path) in str(error.value)


def test_what_is_not_audio_is_refused(tmp_path):
    (tmp_path / "text.wav").write_text("one two three\n" * 50)
    (tmp_path / "nothing.flac").touch()
    for name, words in (
        ("text.wav", "decoded"),
        ("nothing.flac", "decoded"),
        ("absent.wav", "no such"),
        (".", "no such"),
    ):
        with pytest.raises(AudioError, match=words) as error:
            load_audio(tmp_path / name, RATE)
        assert str(pathlib.Path(tmp_path / name)) in str(error.value)


def test_paths_may_be_strings(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440), RATE)
    assert load_audio(str(tmp_path / "a.wav"), RATE).shape == (RATE,)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4000), st.sampled_from([(8_000, 16_000), (16_000, 8_000), (22_050, 16_000), (17_600.0, 16_000)]))
def test_resampling_scales_the_length(count, rates):
    resampled = resample(np.ones(count, np.float32), *rates)
    assert resampled.dtype == np.float32
    assert abs(len(resampled) - count * rates[1] / rates[0]) <= 1


def test_resampling_to_the_same_rate_changes_nothing():
    np.testing.assert_array_equal(resample(tone(440), RATE, RATE), tone(440))


@pytest.mark.parametrize("rates", [(0, 16_000), (16_000, -8_000), (float("nan"), 16_000)])
def test_rates_must_be_positive(rates):
    with pytest.raises(AudioError, match="positive"):
        resample(tone(440), *rates)


@given(st.lists(st.integers(-32_768, 32_767)))
def test_pcm16_is_read_exactly(values):
    samples = pcm16_to_float(struct.pack(f"<{len(values)}h", *values))
    assert samples.dtype == np.float32
    assert (samples * 32_768).tolist() == values
    assert all(-1 <= sample < 1 for sample in samples)


def test_half_a_sample_is_refused():
    with pytest.raises(AudioError, match="even number"):
        pcm16_to_float(b"abc")


@pytest.mark.parametrize("pack", ["libri_mini", "so762_adult", "connected_words_16k", "connected_digits_8k"])
def test_reads_real_speech(speech_data, pack):
    files = sorted((speech_data / pack / "audio").rglob("*.*"))
    for path in files[:: len(files) // 4]:
        samples = load_audio(path, RATE)
        info = soundfile.info(path)
        assert abs(len(samples) - info.frames * RATE / info.samplerate) <= 1
        assert 1e-3 < np.abs(samples).max() < 1
