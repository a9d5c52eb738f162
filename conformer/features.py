"""Log-mel filterbank features that agree with Kaldi's (and so with kaldi-native-fbank on a device).

Per frame of 25 ms every 10 ms, with samples on the int16 scale:

    y[n] = x[n] - mean(x);  z[n] = (y[n] - 0.97 y[n-1]) * povey[n];  log(max(mel @ |FFT(z)|^2, eps))

with povey[n] = (0.5 - 0.5 cos(2 pi n / (N - 1)))^0.85. The window is 0 at n = 0, so that the pre-emphasis of a frame's
first sample, which Kaldi treats apart, never matters. Frames are centred (Kaldi's snip_edges=false): frame t is centred
on sample (t + 1/2) shift, and audio is reflected about its ends, its edge samples repeated.

Source: Povey et al., "The Kaldi Speech Recognition Toolkit", ASRU 2011 (feature-window.cc, mel-computations.cc).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from conformer.audio import INT16_SCALE
from conformer.config import FeatureConfig
from kernels.typing import Array, Float, Int, Key

LOG_FLOOR = float(np.finfo(np.float32).eps)  # 1.1920929e-07, least energy of a filter before the logarithm


class FeatureError(ValueError):
    """A feature configuration, or audio handed in, that cannot be used; the message names the remedy."""


def num_frames(config: FeatureConfig, num_samples: Any) -> Any:
    """Frames of an utterance of `num_samples`: (num_samples + shift // 2) // shift.

    Takes and returns a Python int, a NumPy array or a JAX array.
    """
    shift = _plan(config).shift
    return (num_samples + shift // 2) // shift


def log_mel(
    config: FeatureConfig,
    audio: Float[Array, "batch samples"],
    lengths: Int[Array, " batch"],
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "batch frames mel"], Int[Array, " batch"]]:
    """Log-mel features of a padded batch, and the number of frames of each utterance.

    `audio` is in [-1, 1); `lengths` counts samples, each at most `samples`. frames = num_frames(config, samples), and
    frames past an utterance's own are 0. Each utterance is reflected at its own end: neither padding (whatever it
    holds) nor the rest of the batch changes a result.

    Dither (config.dither > 0, training only) is drawn where a `key` is given, once per sample, so that overlapping
    frames share it; Kaldi draws it anew for each frame.

    `config` is not a traced argument: close over it under `jax.jit`. Raises FeatureError for an impossible config.
    """
    batch, samples = audio.shape
    frames, frame_lengths = num_frames(config, samples), num_frames(config, lengths)
    if frames == 0:
        return jnp.zeros((batch, 0, config.num_mel_bins), jnp.float32), frame_lengths
    audio = audio.astype(jnp.float32) * INT16_SCALE  # Kaldi's samples are int16 values
    if key is not None and config.dither > 0:
        audio += config.dither * jax.random.normal(key, audio.shape)

    def one(row: Array, length: Array) -> Array:
        return _log_mel_of_one(config, row, length, frames)

    # A CPU takes half the time when the windows of one utterance at a time pass through its caches.
    features = jax.lax.platform_dependent(
        audio, lengths, cpu=lambda *batch: jax.lax.map(lambda row: one(*row), batch), default=jax.vmap(one)
    )
    inside = jnp.arange(frames) < frame_lengths[:, None]
    return jnp.where(inside[..., None], features, 0.0), frame_lengths


class StreamingLogMel:
    """`log_mel` for one utterance that arrives in pieces, in NumPy; never dithered.

    Any split into pieces gives the same frames. Holds less than a window and a hop of audio between calls.
    """

    def __init__(self, config: FeatureConfig):
        """Raises FeatureError for an impossible config."""
        self._plan = _plan(config)
        self._config = dataclasses.replace(config)
        self._buffer = np.zeros(0, np.float32)
        self._buffer_start = 0  # position of the buffer's first sample in the utterance
        self._num_frames = 0  # frames given out so far
        self._flushed = False

    def accept(self, samples: np.ndarray) -> Float[np.ndarray, "frames mel"]:
        """Takes the next samples, float in [-1, 1) of any number, and returns the frames they complete.

        Raises FeatureError for samples that are not one row of floats, and after `flush`.
        """
        if self._flushed:
            raise FeatureError("the utterance has been flushed: start a new StreamingLogMel for more audio")
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
            raise FeatureError(
                f"expected one row of float samples in [-1, 1), got {samples.dtype} of shape {samples.shape}: "
                "convert 16-bit samples with pcm16_to_float and average channels"
            )
        self._buffer = np.concatenate([self._buffer, samples.astype(np.float32)])
        complete = (self._received + self._plan.left - self._plan.window_length) // self._plan.shift + 1
        return self._emit(complete)

    def flush(self) -> Float[np.ndarray, "frames mel"]:
        """Ends the utterance and returns its last frames, which reach past its end (none on a second call)."""
        self._flushed = True
        return self._emit(num_frames(self._config, self._received))

    @property
    def _received(self) -> int:
        return self._buffer_start + len(self._buffer)

    def _emit(self, end: int) -> np.ndarray:
        """Computes the frames from the first not given out up to `end`, and drops the audio no later frame needs."""
        plan, count = self._plan, end - self._num_frames
        if count <= 0:
            return np.zeros((0, self._config.num_mel_bins), np.float32)
        start = self._num_frames * plan.shift - plan.left
        positions = np.arange(start, start + (count - 1) * plan.shift + plan.window_length)
        signal = self._buffer[_reflect(positions, self._received) - self._buffer_start] * np.float32(INT16_SCALE)
        windows = np.lib.stride_tricks.sliding_window_view(signal, plan.window_length)[:: plan.shift]
        windows = windows - windows.mean(axis=1, keepdims=True)
        windows[:, 1:] -= self._config.preemphasis * windows[:, :-1]
        spectrum = np.fft.rfft(windows * plan.window, n=plan.fft_size)
        energies = (np.square(spectrum.real) + np.square(spectrum.imag)) @ plan.filters

        self._num_frames = end
        # One sample before the next frame stays: a window of odd length reflects about it.
        keep = max(self._num_frames * plan.shift - plan.left - 1, self._buffer_start)
        self._buffer, self._buffer_start = self._buffer[keep - self._buffer_start :].copy(), keep
        return np.log(np.maximum(energies, np.float32(LOG_FLOOR)))


def front_end_constants(config: FeatureConfig) -> "Plan":
    """What a front end without this code needs (`conformer/export/c_sources.py`). Raises FeatureError."""
    return _plan(config)


class Plan(NamedTuple):
    """What a configuration fixes: geometry in samples, and constants."""

    window_length: int
    shift: int
    left: int  # samples of the first frame that lie before the audio
    right: int  # samples of the last frame that lie past the audio, at most
    fft_size: int
    window: np.ndarray  # float32 [window_length]
    filters: np.ndarray  # float32 [fft_size // 2 + 1, mel]


def _plan(config: FeatureConfig) -> Plan:
    return _make_plan(
        config.sample_rate,
        config.num_mel_bins,
        config.frame_length_ms,
        config.frame_shift_ms,
        config.low_freq,
        config.high_freq,
    )


@functools.lru_cache
def _make_plan(
    sample_rate: int,
    num_mel_bins: int,
    frame_length_ms: int | float,
    frame_shift_ms: int | float,
    low_freq: int | float,
    high_freq: int | float,
) -> Plan:
    length, shift = int(sample_rate * frame_length_ms / 1000), int(sample_rate * frame_shift_ms / 1000)
    if not 1 <= shift <= length or length < 2:
        raise FeatureError(
            f"features.frame_length_ms={frame_length_ms} and features.frame_shift_ms={frame_shift_ms} give a window of "
            f"{length} and a hop of {shift} samples at {sample_rate} Hz: a hop takes from 1 sample to a whole window"
        )
    if not 0 <= low_freq < high_freq <= sample_rate / 2:
        raise FeatureError(
            f"features.low_freq={low_freq} and features.high_freq={high_freq} must ascend within 0 to "
            f"{sample_rate / 2:g} Hz, half of features.sample_rate"
        )
    fft_size = 1 << (length - 1).bit_length()
    left = length // 2 - shift // 2
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))) ** 0.85
    filters = _mel_filters(sample_rate, fft_size, num_mel_bins, low_freq, high_freq)
    constants = [array.astype(np.float32) for array in (window, filters)]
    for array in constants:
        array.flags.writeable = False  # they are shared by every caller
    return Plan(length, shift, left, length - left - shift + shift // 2, fft_size, *constants)


def _mel_filters(sample_rate, fft_size, num_mel_bins, low_freq, high_freq) -> np.ndarray:
    """float64 [fft_size // 2 + 1, mel]: triangles of height 1, corners evenly spaced on mel(f) = 1127 ln(1 + f/700)."""

    def mel(frequency):
        return 1127.0 * np.log1p(np.asarray(frequency, np.float64) / 700.0)

    corners = np.linspace(mel(low_freq), mel(high_freq), num_mel_bins + 2)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = mel(np.arange(fft_size // 2 + 1) * sample_rate / fft_size)[:, None]
    filters = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    if not filters.shape[1] or not filters.any(axis=0).all():
        raise FeatureError(
            f"features.num_mel_bins={num_mel_bins} leaves filters without a frequency, or none at all, between "
            f"{low_freq} and {high_freq} Hz: choose fewer (at least 1), or a longer features.frame_length_ms"
        )
    return filters


def _log_mel_of_one(config: FeatureConfig, audio: Array, length: Array, frames: int) -> Array:
    """[frames, mel] of one utterance on the int16 scale; frames past its own hold anything."""
    plan = _plan(config)
    # Windows and their sums come from slices of hops: far cheaper than a gather of overlapping windows.
    hops_per_frame = -(-plan.window_length // plan.shift)
    signal = _reflect_ends(plan, audio, length, (frames + hops_per_frame - 1) * plan.shift)
    emphasised = signal - config.preemphasis * jnp.pad(signal, (1, 0))[:-1]
    hops, emphasised = signal.reshape(-1, plan.shift), emphasised.reshape(-1, plan.shift)
    slices = [(i, min(plan.shift, plan.window_length - i * plan.shift)) for i in range(hops_per_frame)]
    totals = {width: _row_sums(hops[:, :width]) for _, width in slices}
    total = functools.reduce(jnp.add, [totals[width][i : i + frames] for i, width in slices])
    windows = jnp.concatenate([emphasised[i : i + frames, :width] for i, width in slices], axis=-1)
    # Pre-emphasis scales a constant by 1 - preemphasis, so the mean can be taken off after it. The barrier keeps XLA
    # from summing anew for every sample of a window.
    mean = jax.lax.optimization_barrier(total / plan.window_length)[:, None]
    windows = (windows - (1 - config.preemphasis) * mean) * plan.window

    # rfft takes two thirds of the time of the same DFT as two folded matrix products (measured on 2 CPU cores).
    spectrum = jnp.fft.rfft(windows, n=plan.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # HIGHEST: a GPU's default of TF32 products would be off by 1e-3.
    energies = jnp.matmul(power, plan.filters, precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energies, LOG_FLOOR))


def _row_sums(x: Array) -> Array:
    """x.sum(-1), pairwise: XLA's own sum rounds differently with the length of the batch, and so would features."""
    while (width := x.shape[-1]) % 2 == 0:
        x = x[:, : width // 2] + x[:, width // 2 :]
    return functools.reduce(jnp.add, [x[:, i] for i in range(width)])


def _reflect(positions, length):
    """Positions outside [0, length) mirrored into it, as often as it takes: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ..."""
    positions = positions % (2 * length)
    return positions + (positions >= length) * (2 * length - 1 - 2 * positions)


def _reflect_ends(plan: Plan, audio: Array, length: Array, total: int) -> Array:
    """[total]: `audio` from position -plan.left on, reflected about 0 and `length`."""
    length = jnp.maximum(length, 1)
    before = audio[_reflect(jnp.arange(-plan.left, 0), length)]
    after = audio[_reflect(length + jnp.arange(plan.right), length)]
    room = max(plan.right, total - plan.left - len(audio))
    signal = jnp.concatenate([before, audio, jnp.zeros(room, audio.dtype)])
    return jax.lax.dynamic_update_slice(signal, after, (plan.left + length,))[:total]
