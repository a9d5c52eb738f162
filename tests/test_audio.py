"""conformer/audio.py: what files and bytes turn into, and what is said about those that cannot be used."""

import os
import pathlib
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.audio import AudioError, as_samples, load_audio, pcm16_to_float, read_audio, resample

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


def test_a_path_that_cannot_be_opened_is_named_in_one_error(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(440), RATE)
    for path in (tmp_path / "a.wav" / "b.wav", tmp_path / ("x" * 300), "a\0b.wav"):
        with pytest.raises(AudioError, match="cannot be opened"):
            load_audio(path, RATE)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be opened \(Permission denied\)"):
        load_audio(tmp_path / "a.wav", RATE)


def test_a_name_that_is_not_utf8_is_no_obstacle(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    soundfile.write(tmp_path / "a.wav", tone(440), RATE)
    os.rename(tmp_path / "a.wav", path)
    assert load_audio(os.fsdecode(path), RATE).shape == (RATE,)
    with pytest.raises(AudioError, match=r"caf\\xe8\.wav: no such audio file") as error:
        load_audio(os.fsdecode(path.replace(b"\xe9", b"\xe8")), RATE)
    str(error.value).encode()


def test_a_disk_that_fails_is_one_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    soundfile.write(tmp_path / "a.wav", tone(440), RATE)
    monkeypatch.setattr("conformer.containers.decode.examine", fail)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read \(Input/output error\)"):
        load_audio(tmp_path / "a.wav", RATE)


def test_other_formats_whose_end_cannot_be_told_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.voc", tone(440), RATE)
    with pytest.raises(AudioError, match=r"VOC .*whose end cannot be told: convert it to FLAC"):
        load_audio(tmp_path / "a.voc", RATE)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.flac", "a.wav"])
def test_the_size_of_blocks_changes_no_sample(tmp_path, name):
    soundfile.write(tmp_path / name, np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)
    for rate in (RATE, 8_000):
        blocks = np.concatenate(list(read_audio(tmp_path / name, rate, 0.1)))
        np.testing.assert_allclose(blocks, load_audio(tmp_path / name, rate), atol=1e-6)


def test_paths_may_be_strings(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(440), RATE)
    assert load_audio(str(tmp_path / "a.wav"), RATE).shape == (RATE,)


@settings(max_examples=30)
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


# ----------------------------------------------------------------------- arrays

SAMPLES = tone(440, 8_000, 0.1)
PCM = np.round(SAMPLES * 32_768).astype(np.int16)


@pytest.mark.parametrize(
    "samples",
    [
        PCM,
        PCM.astype(">i2"),
        PCM.astype(np.int32) << 16,
        PCM / 32_768,
        list(PCM / 32_768),
        PCM[:, None] / np.float32(32_768),
        PCM[None],
        np.stack([PCM, PCM], 1),
        np.stack([PCM, PCM, PCM], 0) / 32_768,
    ],
)
def test_arrays_whose_meaning_is_clear_are_the_same_samples(samples):
    taken = as_samples(samples)
    assert taken.dtype == np.float32
    np.testing.assert_allclose(taken, PCM / np.float32(32_768), atol=1e-7)


def test_channels_of_an_array_are_averaged():
    np.testing.assert_allclose(as_samples(np.stack([SAMPLES, -SAMPLES], 1)), np.zeros(800), atol=1e-7)
    np.testing.assert_allclose(as_samples(np.stack([PCM, PCM // 2])), PCM * 0.75 / 32_768, atol=1e-4)


@pytest.mark.parametrize("shape", [(0,), (0, 1), (1, 0), (0, 2), (2, 0)])
def test_no_samples_are_no_samples(shape):
    assert as_samples(np.zeros(shape, np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.float32(0.5), "shape"),
        (np.zeros((1, 1, 800)), "shape"),
        (np.zeros((2, 2)), "not clear which axis"),
        (np.zeros((4, 8)), "not clear which axis"),
        (np.zeros((800, 800)), "not clear which axis"),
        (PCM.astype(np.int64), "int64"),
        ([0, 1000, -1000], "int64"),
        (PCM.astype(np.uint16), "uint16"),
        (PCM.view(np.uint8), "uint8"),
        (PCM.astype(np.complex64), "complex64"),
        (PCM > 0, "bool"),
        (PCM.tobytes(), "shape"),
        ("left.wav", "shape"),
        (None, "shape"),
        ([[0.1, 0.2], [0.3]], "cannot be made an array"),
        (PCM.astype(np.float32), "full scale is 1"),
        (np.array([0.1, np.nan]), "NaN"),
    ],
)
def test_arrays_whose_meaning_is_not_clear_are_refused(samples, words):
    with pytest.raises(AudioError, match=words):
        as_samples(samples)
