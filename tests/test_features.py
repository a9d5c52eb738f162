"""Log-mel features: agreement with Kaldi, independence of padding and of the pieces audio arrives in."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import kaldi_native_fbank
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.audio import load_audio
from conformer.config import FeatureConfig
from conformer.features import log_mel
from conformer.filterbank import FeatureError, StreamingLogMel, num_frames

CONFIG = FeatureConfig()
CONFIGS = [
    CONFIG,
    FeatureConfig(sample_rate=8_000, high_freq=3_800.0, num_mel_bins=40),
    FeatureConfig(sample_rate=22_050, high_freq=8_000.0),  # a window of 551 samples
    FeatureConfig(frame_shift_ms=20.0, num_mel_bins=23),
    FeatureConfig(frame_shift_ms=25.0, preemphasis=0.5),  # windows that do not overlap
]


def kaldi(config: FeatureConfig, audio: np.ndarray) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.frame_length_ms
    options.frame_opts.frame_shift_ms = config.frame_shift_ms
    options.frame_opts.preemph_coeff = config.preemphasis
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = config.num_mel_bins
    options.mel_opts.low_freq = config.low_freq
    options.mel_opts.high_freq = config.high_freq
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(config.sample_rate, (audio * 32_768).tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(i) for i in range(fbank.num_frames_ready)]
    return np.array(frames).reshape(-1, config.num_mel_bins)


@functools.cache
def jitted(config_fields: tuple):
    config = FeatureConfig(*config_fields)
    return jax.jit(lambda audio, lengths: log_mel(config, audio, lengths))


def offline(config: FeatureConfig, audio: np.ndarray) -> np.ndarray:
    """Features of one utterance, padded with noise to a multiple of a second (few shapes to compile)."""
    padded = np.random.default_rng(9).normal(size=-(-max(len(audio), 1) // 16_000) * 16_000).astype(np.float32)
    padded[: len(audio)] = audio
    features, lengths = jitted(dataclasses.astuple(config))(padded[None], np.array([len(audio)], np.int32))
    return np.asarray(features[0, : int(lengths[0])])


def streamed(config: FeatureConfig, audio: np.ndarray, cuts=()) -> np.ndarray:
    stream = StreamingLogMel(config)
    frames = [stream.accept(piece) for piece in np.split(audio, sorted(cuts))]
    return np.concatenate([*frames, stream.flush()])


def speech_like(num_samples: int, rate: int = 16_000) -> np.ndarray:
    """A chirp through the whole band over noise, with an offset, loud and quiet."""
    time = np.arange(num_samples) / rate
    chirp = np.sin(2 * np.pi * (50 + 0.2 * rate * time) * time) * (0.1 + 0.3 * np.sin(3 * time) ** 2)
    return (chirp + 0.01 * np.random.default_rng(1).standard_normal(num_samples) + 0.01).astype(np.float32)


def assert_agrees(actual: np.ndarray, expected: np.ndarray) -> None:
    """Asserts logarithms within 2e-3 down to 70 dB below the frame's loudest filter, and as close energies below that.

    Further down float32 transforms, Kaldi's too, hold the rounding noise of loud filters.
    """
    assert actual.shape == expected.shape
    actual, expected = np.exp(actual.astype(np.float64)), np.exp(expected.astype(np.float64))
    floor = 1e-7 * expected.max(axis=1, keepdims=True, initial=0)
    assert (np.abs(actual - expected) <= 2e-3 * np.maximum(expected, floor)).all()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("transform", [offline, streamed])
def test_agrees_with_kaldi(config, transform):
    audio = speech_like(12_345, config.sample_rate)
    assert_agrees(transform(config, audio), kaldi(config, audio))


@pytest.mark.parametrize("transform", [offline, streamed])
def test_agrees_with_kaldi_on_audio_shorter_than_windows(transform):
    for num_samples in (1, 79, 80, 81, 119, 120, 199, 200, 239, 240, 279, 280, 281, 400, 479, 480, 559, 560, 800):
        audio = speech_like(num_samples)
        assert_agrees(transform(CONFIG, audio), kaldi(CONFIG, audio))


@pytest.mark.parametrize("transform", [offline, streamed])
def test_agrees_with_kaldi_on_real_speech(speech_data, transform):
    for pack in ("libri_mini", "so762_adult", "connected_words_16k", "connected_digits_8k"):
        files = sorted((speech_data / pack / "audio" / "test").rglob("*.*"))
        for path in files[:: len(files) // 2]:
            audio = load_audio(path, CONFIG.sample_rate)[: 6 * CONFIG.sample_rate]
            assert_agrees(transform(CONFIG, audio), kaldi(CONFIG, audio))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4_000), max_size=12), st.integers(0, 4_000), st.sampled_from(CONFIGS))
def test_any_split_gives_the_same_frames(cuts, num_samples, config):
    audio = speech_like(num_samples, config.sample_rate)
    whole = streamed(config, audio)
    assert whole.shape == (num_frames(config, num_samples), config.num_mel_bins)
    np.testing.assert_allclose(streamed(config, audio, [min(cut, num_samples) for cut in cuts]), whole, atol=1e-5)


def test_streaming_gives_frames_as_soon_as_their_samples_are_there():
    stream = StreamingLogMel(CONFIG)
    given = [len(stream.accept(np.ones(n, np.float32))) for n in (279, 1, 159, 1, 1600)]
    assert given == [0, 1, 0, 1, 10]
    assert len(stream.flush()) == num_frames(CONFIG, 2040) - 12
    assert len(stream.flush()) == 0


def test_streaming_memory_does_not_grow():
    stream = StreamingLogMel(CONFIG)
    sizes = []
    for _ in range(320):  # 1,111 samples are 151 more than whole frames, so that each half meets every remainder
        stream.accept(np.ones(1_111, np.float32))
        sizes.append(len(pickle.dumps(stream)))
    assert max(sizes[160:]) <= max(sizes[:160]) + 16  # the counters grow


def test_streaming_refuses_what_it_cannot_use():
    stream = StreamingLogMel(CONFIG)
    with pytest.raises(FeatureError, match="pcm16_to_float"):
        stream.accept(np.ones(100, np.int16))
    with pytest.raises(FeatureError, match="one row"):
        stream.accept(np.ones((100, 2), np.float32))
    stream.flush()
    with pytest.raises(FeatureError, match="flushed"):
        stream.accept(np.ones(100, np.float32))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 8_000), min_size=3, max_size=3), st.floats(-1, 1) | st.just(np.nan))
def test_padding_and_batch_mates_change_nothing(lengths, filler):
    batch = np.full((3, 9_111), filler, np.float32)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = speech_like(length)
    features, counts = jitted(dataclasses.astuple(CONFIG))(batch, np.array(lengths, np.int32))
    assert features.shape == (3, num_frames(CONFIG, 9_111), CONFIG.num_mel_bins)
    assert counts.tolist() == [num_frames(CONFIG, length) for length in lengths]
    for row, length, count in zip(np.asarray(features), lengths, counts.tolist(), strict=True):
        np.testing.assert_allclose(row[:count], offline(CONFIG, speech_like(length)), atol=1e-5)
        assert (row[count:] == 0).all()


@pytest.mark.parametrize("length", [79, 80, 4_000, 4_079])
def test_an_utterance_without_padding_gives_the_same_frames(length):
    audio = speech_like(length)
    features, _ = jax.jit(lambda *batch: log_mel(CONFIG, *batch))(audio[None], np.array([length], np.int32))
    np.testing.assert_allclose(features[0], offline(CONFIG, audio), atol=1e-5)


@pytest.mark.parametrize("transform", [offline, streamed])
def test_silence_is_the_floor(transform):
    np.testing.assert_allclose(transform(CONFIG, np.zeros(4_000, np.float32)), np.log(1.1920929e-07), rtol=1e-6)


def test_dither_needs_both_a_deviation_and_a_key():
    audio, lengths = jnp.asarray(speech_like(4_000)[None]), jnp.asarray([4_000], jnp.int32)
    key = jax.random.key(0)
    plain, _ = log_mel(CONFIG, audio, lengths)
    dithered, silent = (dataclasses.replace(CONFIG, dither=value) for value in (1.0, 0.0))
    np.testing.assert_array_equal(log_mel(silent, audio, lengths, key)[0], plain)
    np.testing.assert_array_equal(log_mel(dithered, audio, lengths)[0], plain)
    once, again = (np.asarray(log_mel(dithered, audio, lengths, key)[0]) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    other = log_mel(dithered, audio, lengths, jax.random.key(1))[0]
    assert not np.array_equal(once, plain)
    assert not np.array_equal(once, other)


def test_dither_has_the_power_of_white_noise_on_the_int16_scale():
    config = dataclasses.replace(CONFIG, dither=2.0)
    silence, lengths = jnp.zeros((1, 64_000)), jnp.asarray([64_000], jnp.int32)
    noise = 2.0 / 32_768 * np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    dithered = np.exp(log_mel(config, silence, lengths, jax.random.key(0))[0]).mean()
    assert dithered == pytest.approx(np.exp(offline(CONFIG, noise)).mean(), rel=0.05)


@given(st.integers(0, 10**7))
def test_frame_counts_are_the_same_for_every_kind_of_number(num_samples):
    expected = (num_samples + 80) // 160
    assert num_frames(CONFIG, num_samples) == expected
    assert num_frames(CONFIG, np.array([num_samples])).tolist() == [expected]
    assert num_frames(CONFIG, jnp.array([num_samples])).tolist() == [expected]


NEMO = FeatureConfig(kind="nemo", window="hann", low_freq=0.0, high_freq=8_000.0, fft_size=512)


@pytest.mark.parametrize("gain", [1.0, 1e-3])
def test_front_ends_agree_about_loudness(gain):
    """Whatever their scale, filters and floor are: of tones, and of noise far below the last bit of int16."""
    audio = gain * speech_like(16_000)
    levels = []
    for config in (CONFIG, dataclasses.replace(CONFIG, kind="kaldi_snipped"), NEMO):
        stream = StreamingLogMel(config)
        features = stream.accept(audio)
        levels.append(stream.levels[2:90])
        assert len(stream.levels) == len(features)
        if config.kind == "kaldi":
            np.testing.assert_allclose(stream.levels, 10 * np.log10(np.exp(features).sum(axis=1)), atol=1e-3)
        stream.flush()
        stream.flush()
        assert len(stream.levels) == 0
    for other in levels[1:]:
        assert np.abs(other - levels[0]).max() < 1.0
    normalised = StreamingLogMel(dataclasses.replace(NEMO, normalise=True))
    assert len(normalised.accept(audio)) == 0  # until the end, but they are heard before
    np.testing.assert_array_equal(normalised.levels[2:90], levels[2])


def test_a_change_of_the_config_is_seen():
    config = FeatureConfig()
    assert offline(config, speech_like(4_000)).shape == (25, 80)
    assert offline(dataclasses.replace(config, num_mel_bins=40), speech_like(4_000)).shape == (25, 40)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"high_freq": 8_001.0}, "high_freq"),
        ({"low_freq": 7_600.0}, "low_freq"),
        ({"low_freq": -1.0}, "low_freq"),
        ({"frame_shift_ms": 0.0}, "frame_shift_ms"),
        ({"frame_shift_ms": 26.0}, "frame_shift_ms"),
        ({"num_mel_bins": 200}, "num_mel_bins"),
        ({"num_mel_bins": 0}, "num_mel_bins"),
    ],
)
def test_an_impossible_config_is_refused(change, key):
    with pytest.raises(FeatureError, match=key):
        StreamingLogMel(dataclasses.replace(CONFIG, **change))
