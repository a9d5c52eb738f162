"""conformer/augment.py: what augmentation may change, by how much, and that a seed decides it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.augment import augment_audio, spec_augment, warp_frequencies
from conformer.background import LEVELS_DB, coloured_noise, draw_background, hum, notes, root_mean_square
from conformer.config import AugmentConfig, ConfigError, FeatureConfig
from conformer.filterbank import plan_of

RATE = 16_000
CLEAN = AugmentConfig(num_freq_masks=0, num_time_masks=0)
TONE = (0.1 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)).astype(np.float32)


def augment(config: AugmentConfig, seed: int = 0, audio: np.ndarray = TONE) -> np.ndarray:
    return augment_audio(config, audio, RATE, np.random.default_rng(seed))


@functools.cache
def jitted(config_fields: tuple):
    return jax.jit(lambda *arguments: spec_augment(AugmentConfig(*config_fields), *arguments))


def masked(config: AugmentConfig, lengths: list[int], frames: int, mel: int, seed: int) -> np.ndarray:
    """bool [batch, frames, mel]: what spec_augment set to 0, after checking that it left the rest alone."""
    features = np.random.default_rng(0).uniform(1, 2, (len(lengths), frames, mel)).astype(np.float32)
    arguments = features, np.array(lengths, np.int32), jax.random.key(seed)
    result = np.asarray(jitted(dataclasses.astuple(config))(*arguments))
    assert ((result == 0) | (result == features)).all()
    return result == 0


def test_nothing_on_changes_nothing():
    np.testing.assert_array_equal(augment(CLEAN), TONE)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor):
    result = augment(dataclasses.replace(CLEAN, speed_factors=(factor,)))
    assert result.dtype == np.float32
    assert abs(len(result) - RATE / factor) <= 1
    pitch = np.abs(np.fft.rfft(result)).argmax() * RATE / len(result)
    assert pitch == pytest.approx(1000 * factor, abs=2)


def test_every_speed_is_drawn():
    config = dataclasses.replace(CLEAN, speed_factors=(0.9, 1.0, 1.1))
    assert len({len(augment(config, seed)) for seed in range(20)}) == 3


@given(st.floats(-20, 20))
def test_gain_is_in_decibels(decibels):
    np.testing.assert_allclose(
        augment(dataclasses.replace(CLEAN, gain_db=(decibels, decibels))), TONE * 10 ** (decibels / 20), rtol=1e-5
    )


@settings(max_examples=20)
@given(st.floats(-10, 40), st.integers(0, 1000))
def test_noise_has_the_ratio_asked_for(snr, seed):
    config = dataclasses.replace(CLEAN, noise_probability=1.0, noise_snr_db=(snr, snr))
    result = augment(config, seed)
    assert result.dtype == np.float32
    noise = (result - TONE).astype(np.float64)
    assert 10 * np.log10(np.mean(TONE**2) / np.mean(noise**2)) == pytest.approx(snr, abs=0.05)


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_noise_falls_as_asked_for(slope):
    noise = coloured_noise(4 * RATE, slope, np.random.default_rng(0))
    blocks = noise[: len(noise) // 1024 * 1024].reshape(-1, 1024) * np.hanning(1024)
    power = np.square(np.abs(np.fft.rfft(blocks))).mean(axis=0)
    band = slice(32, 256)  # 500 to 4000 Hz
    assert -np.polyfit(np.log(np.arange(513)[band]), np.log(power[band]), 1)[0] == pytest.approx(slope, abs=0.15)


def test_hum_lies_on_multiples_of_the_mains_and_notes_have_pitches():
    spectrum = np.abs(np.fft.rfft(hum(RATE, RATE, np.random.default_rng(2)) * np.hanning(RATE)))
    base = spectrum[40:70].argmax() + 40
    assert min(abs(base - 50), abs(base - 60)) <= 1
    tune = np.square(np.abs(np.fft.rfft(notes(RATE, RATE, np.random.default_rng(0)))))
    assert np.sort(tune)[::-1][:200].sum() > 0.9 * tune.sum()  # a few lines hold the energy: noise needs half of them


def test_backgrounds_are_of_every_kind_and_level():
    sounds = [draw_background(400, RATE, np.random.default_rng(seed)) for seed in range(200)]
    assert all(sound.shape == (400,) and sound.dtype == np.float32 for sound in sounds)
    levels = np.array([20 * np.log10(root_mean_square(sound)) for sound in sounds if sound.any()])
    assert 10 < len(sounds) - len(levels) < 45  # digital silence: 25 expected
    assert levels.min() < -75 and levels.max() > -15
    assert ((levels > LEVELS_DB[0] - 0.1) & (levels < LEVELS_DB[1] + 0.1)).all()


def test_pauses_are_silent_and_fit():
    config = dataclasses.replace(CLEAN, pause_seconds=0.5)
    for seed in range(20):
        result = augment_audio(config, TONE, RATE, np.random.default_rng(seed), len(TONE) + RATE // 2)
        assert len(TONE) < len(result) <= len(TONE) + RATE // 2
        start = int(np.flatnonzero(result)[0]) - 1  # the tone begins at 0
        np.testing.assert_array_equal(result[start : start + len(TONE)], TONE)
        assert not result[:start].any() and not result[start + len(TONE) :].any()
    np.testing.assert_array_equal(augment_audio(config, TONE, RATE, np.random.default_rng(0), len(TONE)), TONE)


def test_noise_comes_to_its_share_of_utterances():
    config = dataclasses.replace(CLEAN, noise_probability=0.3)
    noisy = sum(not np.array_equal(augment(config, seed, TONE[:200]), TONE[:200]) for seed in range(400))
    assert 80 < noisy < 160  # 120 expected, standard deviation 9


def test_silence_gets_no_noise():
    config = dataclasses.replace(CLEAN, noise_probability=1.0)
    np.testing.assert_array_equal(augment(config, audio=np.zeros(800, np.float32)), np.zeros(800))


def test_the_seed_decides_audio():
    config = AugmentConfig(speed_factors=(0.9, 1.1), noise_probability=1.0, gain_db=(-6.0, 6.0))
    original = TONE.copy()
    np.testing.assert_array_equal(augment(config, 3), augment(config, 3))
    assert not np.array_equal(augment(config, 3)[:1000], augment(config, 4)[:1000])
    np.testing.assert_array_equal(TONE, original)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 60), min_size=4, max_size=4),
    st.sampled_from(
        [
            AugmentConfig(),
            AugmentConfig(num_freq_masks=1, freq_mask_width=3, num_time_masks=3, time_mask_width=30),
            AugmentConfig(
                num_freq_masks=3, freq_mask_width=2, num_time_masks=1, time_mask_width=5, time_mask_share=0.5
            ),
            AugmentConfig(num_freq_masks=0, num_time_masks=2, time_mask_width=60, time_mask_share=1.0),
            AugmentConfig(num_freq_masks=2, freq_mask_width=4, time_mask_share=0.0),
        ]
    ),
    st.integers(0, 1000),
)
def test_masks_are_whole_bins_and_frames_within_their_limits(lengths, config, seed):
    for mask, length in zip(masked(config, lengths, 64, 16, seed), lengths, strict=True):
        bins, frames = mask.all(axis=0), mask.all(axis=1)
        if not (bins.all() or frames.all()):
            np.testing.assert_array_equal(mask, bins[None, :] | frames[:, None])
        if not bins.all():
            assert bins.sum() <= config.num_freq_masks * config.freq_mask_width
            longest = min(config.time_mask_width, config.time_mask_share * length)
            assert frames.sum() <= config.num_time_masks * longest
            assert not frames[length:].any()


def test_masks_reach_every_width_and_place():
    time = AugmentConfig(num_freq_masks=0, num_time_masks=1, time_mask_width=4, time_mask_share=1.0)
    freq = AugmentConfig(num_freq_masks=1, num_time_masks=0, freq_mask_width=4)
    for mask in (
        masked(time, [10] * 600, 12, 3, 0).all(axis=2)[:, :10],
        masked(freq, [10] * 600, 3, 10, 0).all(axis=1),
    ):
        widths = mask.sum(axis=1)
        share = np.bincount(widths, minlength=5) / len(widths)
        np.testing.assert_allclose(share, 0.2, atol=0.07)  # 0 to 4, evenly; standard deviation 0.016
        starts = mask[widths == 4].argmax(axis=1)
        assert set(starts.tolist()) == set(range(7))
        assert ((np.diff(mask.astype(int), axis=1, prepend=0, append=0) == 1).sum(axis=1) <= 1).all()


def test_a_mask_wider_than_the_features_still_fits():
    config = AugmentConfig(num_freq_masks=1, freq_mask_width=50, num_time_masks=0)
    widths = masked(config, [5] * 200, 5, 8, 0).all(axis=1).sum(axis=1)
    assert set(widths.tolist()) == set(range(9))


def test_the_key_decides_masks_and_utterances_differ():
    masks = masked(AugmentConfig(), [200] * 4, 200, 80, 0)
    np.testing.assert_array_equal(masks, masked(AugmentConfig(), [200] * 4, 200, 80, 0))
    assert not np.array_equal(masks, masked(AugmentConfig(), [200] * 4, 200, 80, 1))
    assert not np.array_equal(masks[0], masks[1])


def test_masks_are_the_same_under_jit():
    features, lengths, key = jnp.ones((3, 100, 40)), jnp.asarray([100, 50, 0]), jax.random.key(2)
    config = AugmentConfig()
    expected = spec_augment(config, features, lengths, key)
    np.testing.assert_array_equal(jitted(dataclasses.astuple(config))(features, lengths, key), expected)


def test_warping_moves_a_peak_by_a_factor_of_its_own_for_each_utterance():
    centres = plan_of(FeatureConfig()).centres
    peak = np.exp(-(((centres - 2000) / 300) ** 2)).astype(np.float32)
    features = jnp.tile(peak, (64, 2, 1))
    warped = warp_frequencies(AugmentConfig(frequency_warp=0.2), features, centres, jax.random.key(0))
    factors = 2000 / centres[np.asarray(warped.argmax(axis=2))]
    np.testing.assert_array_equal(factors[:, 0], factors[:, 1])  # all frames of an utterance alike
    step = 1.04  # between two mel bins there
    assert 0.8 / step <= factors.min() < 0.85 and 1.15 < factors.max() <= 1.2 * step
    assert len(set(factors[:, 0])) > 5
    unchanged = warp_frequencies(AugmentConfig(), features, centres, jax.random.key(0))
    np.testing.assert_allclose(unchanged, features, atol=1e-6)


def test_warping_repeats_the_last_bins_beyond_the_ends():
    centres = plan_of(FeatureConfig()).centres
    rising = jnp.tile(jnp.arange(80.0), (32, 1, 1))
    warped = np.asarray(warp_frequencies(AugmentConfig(frequency_warp=0.3), rising, centres, jax.random.key(1)))
    assert (np.diff(warped) >= -1e-4).all() and warped.min() >= 0 and warped.max() <= 79 + 1e-4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_masks_leave_features_and_their_format_alone(dtype):
    features = jnp.full((2, 10, 4), jnp.nan, dtype)
    result = spec_augment(CLEAN, features, jnp.asarray([10, 5]), jax.random.key(0))
    assert result.dtype == dtype
    assert jnp.isnan(result).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("speed_factors", ()),
        ("frequency_warp", 0.6),
        ("speed_factors", (1.0, 0.0)),
        ("noise_probability", 1.5),
        ("noise_snr_db", (30.0, 5.0)),
        ("gain_db", (1.0, -1.0)),
        ("time_mask_share", 1.5),
        ("time_mask_share", -0.1),
        ("freq_mask_width", -1),
        ("num_time_masks", -1),
    ],
)
def test_an_impossible_setting_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"augment.{key}="):
        dataclasses.replace(CLEAN, **{key: value})
