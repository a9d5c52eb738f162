"""Training-time augmentation: of audio in the loader (NumPy), of features in the training step (JAX)."""

import jax
import jax.numpy as jnp
import numpy as np

from conformer.audio import resample
from conformer.background import draw_sound, root_mean_square
from conformer.config import AugmentConfig
from kernels.typing import Array, Float, Int, Key


def augment_audio(
    config: AugmentConfig,
    audio: Float[np.ndarray, " samples"],
    sample_rate: int,
    rng: np.random.Generator,
    longest: int = 0,
) -> Float[np.ndarray, " augmented"]:
    """Speed perturbation (Ko et al., "Audio Augmentation for Speech Recognition", 2015), gain, pauses, background.

    A speed factor f gives about samples / f samples, and pitch moves with it. Pauses of up to pause_seconds are put
    before and after, as far as the result has no more than `longest` samples. The background is noise, hum or notes
    (`conformer/background.py`) over all of it; its power is set against the mean power of this utterance. Samples are
    not clipped: gain and background may take them past 1.

    The result depends on the arguments and the state of `rng` alone.
    """
    speed = float(rng.choice(config.speed_factors))
    audio = resample(audio, sample_rate * speed, sample_rate)
    audio = audio * 10 ** (rng.uniform(*config.gain_db) / 20)
    level = root_mean_square(audio)
    if config.pause_seconds:
        audio = np.pad(audio, _pauses(config.pause_seconds * sample_rate, longest - len(audio), rng))
    if rng.random() < config.noise_probability:
        sound = draw_sound(len(audio), sample_rate, rng)
        ratio = 10 ** (rng.uniform(*config.noise_snr_db) / 20)
        audio = audio + sound * (level / max(ratio * root_mean_square(sound), 1e-9))
    return audio.astype(np.float32)


def _pauses(longest: float, room: int, rng: np.random.Generator) -> tuple[int, int]:
    """Samples before and after: each uniform in [0, longest], both shortened to fit `room`."""
    before, after = rng.uniform(0, longest, 2)
    fit = min(1.0, max(room, 0) / max(before + after, 1.0))
    return int(before * fit), int(after * fit)


def warp_frequencies(
    config: AugmentConfig,
    features: Float[Array, "batch frames mel"],
    centres: Float[np.ndarray, " mel"],
    key: Key[Array, ""],
) -> Float[Array, "batch frames mel"]:
    """Stretches the frequencies of each utterance by a factor of its own, as a longer or shorter throat would.

    out(f) = features(a f), with a uniform in 1 +- frequency_warp (Jaitly and Hinton, "Vocal Tract Length Perturbation",
    2013). `centres` are the frequencies of the mel bins in Hz; between two of them values are interpolated, beyond
    the last they repeat.
    """
    mel = len(centres)
    factors = 1.0 + config.frequency_warp * jax.random.uniform(key, (len(features), 1), minval=-1.0)
    sources = jnp.interp(factors * centres, centres, jnp.arange(mel, dtype=jnp.float32))  # the bin that each reads
    shares = jnp.maximum(0.0, 1.0 - jnp.abs(sources[:, None, :] - jnp.arange(mel)[:, None]))
    return jnp.einsum("btm,bmn->btn", features, shares.astype(features.dtype))


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
