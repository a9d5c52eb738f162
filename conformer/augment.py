"""Training-time augmentation: of audio in the loader (NumPy), of features in the training step (JAX)."""

import jax
import jax.numpy as jnp
import numpy as np

from conformer.audio import resample
from conformer.config import AugmentConfig
from kernels.typing import Array, Float, Int, Key

_NOISE_TAPS = 64  # the spectral slope of noise holds down to about sample_rate / 64


def augment_audio(
    config: AugmentConfig, audio: Float[np.ndarray, " samples"], sample_rate: int, rng: np.random.Generator
) -> Float[np.ndarray, " augmented"]:
    """Speed perturbation (Ko et al., "Audio Augmentation for Speech Recognition", 2015), gain, and additive noise.

    A speed factor f gives about samples / f samples, and pitch moves with it. Noise has a power spectrum of 1/freq^b,
    b uniform in [0, 1] (white to pink), and its power is set against the mean power of this utterance. Samples are not
    clipped: gain and noise may take them past 1.

    The result depends on the arguments and the state of `rng` alone.
    """
    speed = float(rng.choice(config.speed_factors))
    audio = resample(audio, sample_rate * speed, sample_rate)
    audio = audio * 10 ** (rng.uniform(*config.gain_db) / 20)
    if rng.random() < config.noise_probability:
        noise = _coloured_noise(len(audio), rng.uniform(0.0, 1.0), rng)
        ratio = 10 ** (rng.uniform(*config.noise_snr_db) / 10)
        audio = audio + noise * float(np.sqrt(_power(audio) / (ratio * _power(noise))))
    return audio


def spec_augment(
    config: AugmentConfig,
    features: Float[Array, "batch frames mel"],
    lengths: Int[Array, " batch"],
    key: Key[Array, ""],
    strength: float | Float[Array, ""] = 1.0,
) -> Float[Array, "batch frames mel"]:
    """SpecAugment without warping (Park et al., 2019): blocks of mel bins and of frames set to 0.

    Every mask's width is uniform in [0, its maximum], and its place uniform over where it fits; `lengths` counts
    frames. A time mask stays within its utterance and takes at most time_mask_share of it (Park et al., "SpecAugment
    on Large Scale Datasets", 2020). 0 is the mean of features that have been mean-normalised. `strength`, in [0, 1],
    scales the largest widths.
    """
    batch, frames, mel = features.shape
    freq_key, time_key = jax.random.split(key)
    bins = jnp.full((batch,), mel, lengths.dtype)
    widest = (jnp.minimum(bins, config.freq_mask_width) * strength).astype(lengths.dtype)
    longest = jnp.minimum(lengths * config.time_mask_share, config.time_mask_width)
    freq = _masks(freq_key, config.num_freq_masks, widest, bins, mel)
    time = _masks(time_key, config.num_time_masks, (longest * strength).astype(lengths.dtype), lengths, frames)
    return jnp.where(freq[:, None, :] | time[:, :, None], jnp.zeros((), features.dtype), features)


def _masks(key: Array, count: int, max_widths: Array, lengths: Array, size: int) -> Array:
    """bool [batch, size]: the union of `count` random blocks a row, each inside [0, length) of its row."""
    width_key, start_key = jax.random.split(key)
    shape = (len(lengths), count)
    widths = jax.random.randint(width_key, shape, 0, max_widths[:, None] + 1, lengths.dtype)
    starts = jax.random.randint(start_key, shape, 0, lengths[:, None] - widths + 1, lengths.dtype)
    positions = jnp.arange(size)
    inside = (positions >= starts[..., None]) & (positions < (starts + widths)[..., None])
    return inside.any(axis=1)


def _coloured_noise(num_samples: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [num_samples] of noise with power spectrum 1/freq^slope: white noise through (1 - 1/z)^(-slope / 2).

    The filter's taps are h[0] = 1, h[k] = h[k-1] (k - 1 + slope / 2) / k, here the first _NOISE_TAPS of them (Kasdin,
    "Discrete Simulation of Colored Noise", Proc. IEEE 83(5), 1995).
    """
    k = np.arange(1, _NOISE_TAPS)
    taps = np.cumprod(np.concatenate([[1.0], (k - 1 + slope / 2) / k])).astype(np.float32)
    white = rng.standard_normal(num_samples + _NOISE_TAPS - 1, dtype=np.float32)
    return np.convolve(white, taps, mode="valid")


def _power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples)))
