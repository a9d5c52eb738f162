"""Sounds that hold no speech: silence, noise, mains hum and notes. A recogniser learns from them to write nothing.

All are float32 [samples], made from a generator of random numbers alone.
"""

from collections.abc import Callable

import numpy as np

from kernels.typing import Float

LEVELS_DB = (-80.0, -10.0)  # of the root mean square, against full scale
_MAINS = (50.0, 60.0)  # Hz
_NOISE_TAPS = 64  # the spectral slope of noise holds down to about sample_rate / 64

Sound = Float[np.ndarray, " samples"]


def draw_background(num_samples: int, sample_rate: int, rng: np.random.Generator) -> Sound:
    """One of the sounds below, at a level drawn from LEVELS_DB; digital silence in one of eight cases."""
    if rng.random() < 1 / 8:
        return np.zeros(num_samples, np.float32)
    sound = draw_sound(num_samples, sample_rate, rng)
    level = 10 ** (rng.uniform(*LEVELS_DB) / 20)
    return (sound * (level / max(root_mean_square(sound), 1e-9))).astype(np.float32)


def draw_sound(num_samples: int, sample_rate: int, rng: np.random.Generator) -> Sound:
    """Noise in half of the cases, else hum or notes; their levels mean nothing."""
    kinds: tuple[Callable[..., Sound], ...] = (_noise, _noise, hum, notes)
    return kinds[rng.integers(len(kinds))](num_samples, sample_rate, rng)


def coloured_noise(num_samples: int, slope: float, rng: np.random.Generator) -> Sound:
    """Noise with power spectrum 1/freq^slope: white noise through (1 - 1/z)^(-slope / 2).

    The filter's taps are h[0] = 1, h[k] = h[k-1] (k - 1 + slope / 2) / k, here the first _NOISE_TAPS of them (Kasdin,
    "Discrete Simulation of Colored Noise", Proc. IEEE 83(5), 1995).
    """
    k = np.arange(1, _NOISE_TAPS)
    taps = np.cumprod(np.concatenate([[1.0], (k - 1 + slope / 2) / k])).astype(np.float32)
    white = rng.standard_normal(num_samples + _NOISE_TAPS - 1, dtype=np.float32)
    return np.convolve(white, taps, mode="valid")


def hum(num_samples: int, sample_rate: int, rng: np.random.Generator) -> Sound:
    """Mains hum of 50 or 60 Hz with up to 20 harmonics, whose levels fall at random."""
    fundamental = float(rng.choice(_MAINS)) * rng.uniform(0.99, 1.01)
    order = np.arange(1, rng.integers(2, 21))
    levels = rng.uniform(0, 1, len(order)) / order ** rng.uniform(0, 1.5)
    return _harmonics(num_samples, sample_rate, fundamental, levels, rng)


def notes(num_samples: int, sample_rate: int, rng: np.random.Generator) -> Sound:
    """One to four voices of notes of 0.08 to 1.5 s and 60 to 1,500 Hz, which begin fast and die away."""
    sound = np.zeros(num_samples, np.float32)
    for _ in range(rng.integers(1, 5)):
        decay, falling = rng.uniform(0.5, 8.0), rng.uniform(0.5, 2.0)  # 1/s; of the harmonics
        start = 0
        while start < num_samples:
            length = min(int(sample_rate * rng.uniform(0.08, 1.5)), num_samples - start)
            frequency = 60.0 * 25.0 ** rng.random()
            note = _harmonics(length, sample_rate, frequency, 1 / np.arange(1, rng.integers(2, 9)) ** falling, rng)
            seconds = np.arange(length, dtype=np.float32) / sample_rate
            sound[start : start + length] += note * np.exp(-decay * seconds) * np.minimum(1, seconds / 0.01)
            start += length + int(sample_rate * rng.choice([0.0, rng.uniform(0, 0.5)]))
    return sound


def root_mean_square(sound: Sound) -> float:
    """Computes the root of the mean square of all samples; 0 where there are none."""
    return float(np.sqrt(np.mean(np.square(sound)))) if len(sound) else 0.0


def _noise(num_samples: int, sample_rate: int, rng: np.random.Generator) -> Sound:
    """White to brown noise; in half of the cases it swells and fades a few times a second, as wind does."""
    noise = coloured_noise(num_samples, rng.uniform(0.0, 2.0), rng)
    if rng.random() < 0.5:
        points = 2 + int(num_samples / sample_rate * rng.uniform(0.5, 6.0))
        envelope = np.interp(np.linspace(0, points - 1, num_samples), np.arange(points), rng.uniform(0.05, 1, points))
        noise = noise * envelope.astype(np.float32)
    return noise


def _harmonics(
    num_samples: int,
    sample_rate: int,
    fundamental: float,
    levels: Float[np.ndarray, " order"],
    rng: np.random.Generator,
) -> Sound:
    """Multiples of `fundamental` (Hz) at these levels, with random phases; those above half the rate are left out."""
    turns = np.arange(num_samples, dtype=np.float64) * (fundamental / sample_rate)
    sound = np.zeros(num_samples, np.float32)
    for order, level in enumerate(levels, start=1):
        if order * fundamental < sample_rate / 2:
            sound += (level * np.sin(2 * np.pi * ((order * turns + rng.random()) % 1))).astype(np.float32)
    return sound
