"""Log-mel filterbank features that agree with Kaldi's (and so with kaldi-native-fbank on a device).

Per frame of 25 ms every 10 ms, with samples on the int16 scale:

    y[n] = x[n] - mean(x);  z[n] = (y[n] - 0.97 y[n-1]) * povey[n];  log(max(mel @ |FFT(z)|^2, eps))

with povey[n] = (0.5 - 0.5 cos(2 pi n / (N - 1)))^0.85. The window is 0 at n = 0, so that the pre-emphasis of a frame's
first sample, which Kaldi treats apart, never matters. Frames are centred (Kaldi's snip_edges=false): frame t is centred
on sample (t + 1/2) shift, and audio is reflected about its ends, its edge samples repeated.

That is `features.kind` "kaldi". "kaldi_snipped" (WeNet) has the frames that lie inside the audio alone. "nemo" differs
in more: frame t is centred on sample t shift, with zeros outside the audio; samples lie in [-1, 1), pre-emphasis
precedes framing and no mean is taken off; filters are Slaney's, of equal area, and the features
log(mel @ |FFT(z)|^2 + 2^-24).

A frame's loudness is 10 log10(sum of mel @ |FFT(z)|^2) in dB, with samples on the int16 scale and filters of height 1
whatever the kind: front ends that hear the same agree about it.

Sources: Povey et al., "The Kaldi Speech Recognition Toolkit", ASRU 2011 (feature-window.cc, mel-computations.cc);
Slaney, "Auditory Toolbox", 1998; NeMo's FilterbankFeatures.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from conformer.audio import INT16_SCALE
from conformer.config import FeatureConfig
from kernels.typing import Float

LOG_FLOOR = float(np.finfo(np.float32).eps)  # 1.1920929e-07, least energy of a filter before the logarithm
MOST_TRAILING = 10.0  # seconds of silence behind the audio
LOG_GUARD = 2.0**-24  # added to it by NeMo


class FeatureError(ValueError):
    """A feature configuration, or audio handed in, that cannot be used; the message names the remedy."""


def num_frames(config: FeatureConfig, num_samples: Any) -> Any:
    """Frames of an utterance of `num_samples`. Takes and returns a Python int, a NumPy array or a JAX array."""
    plan = plan_of(config)
    if config.kind == "nemo":
        return num_samples // plan.shift
    if config.kind == "kaldi_snipped":
        missing = plan.window_length - plan.shift
        return (num_samples - missing) // plan.shift * (num_samples >= plan.window_length)
    return (num_samples + plan.shift // 2) // plan.shift


def scale_of(config: FeatureConfig) -> float:
    """Returns the factor that samples in [-1, 1) are multiplied by: Kaldi's filterbank expects int16 values."""
    return 1.0 if config.kind == "nemo" else INT16_SCALE


def normalised(features: Any, count: Any, inside: Any) -> Any:
    """(x - mean) / (deviation + 1e-5) of each bin over the `count` frames (..., frames, mel) that are `inside`.

    Takes NumPy and JAX arrays.
    """
    mean = (features * inside).sum(-2, keepdims=True) / count
    centred = (features - mean) * inside
    variance = (centred * centred).sum(-2, keepdims=True) / (count - 1 + (count == 1))  # unbiased
    return centred / (variance**0.5 + 1e-5)


def trailing_samples(config: FeatureConfig, num_samples: Any) -> Any:
    """Samples of silence to recognise behind an utterance of `num_samples`; none behind less than a window.

    A network that hears a word end knows the word: audio that ends with its last word would lose it. Takes and returns
    what `num_frames` does.
    """
    plan = plan_of(config)
    return (num_samples >= plan.window_length) * plan.trailing


class StreamingLogMel:
    """`conformer.features.log_mel` for one utterance that arrives in pieces, in NumPy; never dithered.

    Any split into pieces gives the same frames. Holds less than a window and a hop of audio between calls; with
    `features.normalise` all frames, which come with `flush`.
    """

    def __init__(self, config: FeatureConfig):
        """Raises FeatureError for an impossible config."""
        self._plan = plan_of(config)
        self._config = config
        self._buffer = np.zeros(0, np.float32)
        self._buffer_start = 0  # position of the buffer's first sample in the utterance
        self._num_frames = 0  # frames given out so far
        self._flushed = False
        self._kept = np.zeros((0, config.num_mel_bins), np.float32)  # frames to be normalised
        self.levels = np.zeros(0, np.float32)  # loudness of the frames that the last call computed, in dB

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
        complete = (self.received + self._plan.left - self._plan.window_length) // self._plan.shift + 1
        frames = self._emit(complete)
        if not self._config.normalise:
            return frames
        self._kept = np.concatenate([self._kept, frames])
        return frames[:0]

    def flush(self) -> Float[np.ndarray, "frames mel"]:
        """Ends the utterance and returns its last frames, which reach past its end (none on a second call)."""
        self._flushed = True
        frames = self._emit(num_frames(self._config, self.received))
        if not self._config.normalise:
            return frames
        frames, self._kept = np.concatenate([self._kept, frames]), frames[:0]
        return normalised(frames, len(frames), np.float32(1)) if len(frames) else frames

    @property
    def received(self) -> int:
        """Samples taken so far."""
        return self._buffer_start + len(self._buffer)

    def _emit(self, end: int) -> np.ndarray:
        """Computes the frames from the first not given out up to `end`, and drops the audio no later frame needs."""
        plan, count = self._plan, end - self._num_frames
        if count <= 0:
            self.levels = np.zeros(0, np.float32)
            return np.zeros((0, self._config.num_mel_bins), np.float32)
        start = self._num_frames * plan.shift - plan.left
        stop = start + (count - 1) * plan.shift + plan.window_length
        if self._config.kind == "nemo":
            windows = self._windows(self._emphasised(start, stop))
        else:
            positions = reflect(np.arange(start, stop), self.received) - self._buffer_start
            # In doubles: in floats, faint bins beside loud ones would err in the third digit.
            windows = self._windows(self._buffer[positions].astype(np.float64) * scale_of(self._config))
            windows = windows - windows.mean(axis=1, keepdims=True)
            windows[:, 1:] -= self._config.preemphasis * windows[:, :-1]
        spectrum = np.fft.rfft(windows * plan.window, n=plan.fft_size)
        power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
        energies = power @ plan.filters
        self.levels = 10 * np.log10(np.maximum(power @ plan.hearing, np.float32(LOG_FLOOR)))

        self._num_frames = end
        # One sample before the next frame stays: a window of odd length reflects about it.
        keep = max(self._num_frames * plan.shift - plan.left - 1, self._buffer_start)
        self._buffer, self._buffer_start = self._buffer[keep - self._buffer_start :].copy(), keep
        if self._config.kind == "nemo":
            return np.log(energies + np.float32(LOG_GUARD))
        return np.log(np.maximum(energies, np.float32(LOG_FLOOR)))

    def _windows(self, signal: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(signal, self._plan.window_length)[:: self._plan.shift]

    def _emphasised(self, start: int, stop: int) -> np.ndarray:
        """The signal after pre-emphasis, zero outside the audio."""
        positions = np.arange(start - 1, stop)
        inside = (positions >= 0) & (positions < self.received)
        places = np.clip(positions - self._buffer_start, 0, len(self._buffer) - 1)
        signal = np.where(inside, self._buffer[places], np.float32(0))
        return (signal[1:] - np.float32(self._config.preemphasis) * signal[:-1]) * inside[1:]


class Plan(NamedTuple):
    """The numbers that follow from a configuration: sizes in samples, and constants."""

    window_length: int
    shift: int
    left: int  # samples of the first frame that lie before the audio
    right: int  # samples of the last frame that lie past the audio, at most
    trailing: int  # samples of silence behind an utterance that is recognised
    fft_size: int
    window: np.ndarray  # float32 [window_length]
    filters: np.ndarray  # float32 [fft_size // 2 + 1, mel]
    hearing: np.ndarray  # float32 [fft_size // 2 + 1], all filters as one, for loudness
    centres: np.ndarray  # float32 [mel], Hz


@functools.lru_cache
def plan_of(config: FeatureConfig) -> Plan:
    """The plan of a configuration. Raises FeatureError for an impossible one."""
    rate, low, high = config.sample_rate, config.low_freq, config.high_freq
    # Whole samples, as Kaldi counts them; a length that is 1000 n / rate ms has n, whatever its last digit.
    length, shift = (int(rate * ms / 1000 + 1e-6) for ms in (config.frame_length_ms, config.frame_shift_ms))
    if not 1 <= shift <= length or length < 2:
        raise FeatureError(
            f"features.frame_length_ms={config.frame_length_ms} and features.frame_shift_ms={config.frame_shift_ms} "
            f"give a window of {length} and a hop of {shift} samples at {rate} Hz: a hop takes from 1 sample to a "
            "whole window"
        )
    if not 0 <= low < high <= rate / 2:
        raise FeatureError(
            f"features.low_freq={low} and features.high_freq={high} must ascend within 0 to {rate / 2:g} Hz, half of "
            "features.sample_rate"
        )
    if not 0 <= config.trailing_silence <= MOST_TRAILING:
        raise FeatureError(
            f"features.trailing_silence={config.trailing_silence} must lie within 0 and {MOST_TRAILING:g} seconds"
        )
    trailing = round(rate * config.trailing_silence)
    fft_size = config.fft_size or 1 << (length - 1).bit_length()
    if fft_size < length or fft_size % 2:
        raise FeatureError(f"features.fft_size={fft_size} must be even and hold a window of {length} samples")
    window = WINDOWS[config.window](length)
    filters, heights, centres = _mel_filters(config, fft_size)
    hearing = filters.sum(axis=1) * (INT16_SCALE / scale_of(config)) ** 2
    constants = [array.astype(np.float32) for array in (window, filters * heights, hearing, centres)]
    for array in constants:
        array.flags.writeable = False  # they are shared by every caller
    left = {"kaldi": length // 2 - shift // 2, "kaldi_snipped": 0, "nemo": fft_size // 2 - (fft_size - length) // 2}
    left = left[config.kind]
    right = length - left - shift + shift // 2 if config.kind == "kaldi" else 0
    return Plan(length, shift, left, right, trailing, fft_size, *constants)


def _povey(length: int) -> np.ndarray:
    return np.hanning(length) ** 0.85


WINDOWS = {
    "povey": _povey,
    "hann": np.hanning,
    "hamming": np.hamming,
    "blackman": np.blackman,
    "bartlett": np.bartlett,
    "ones": np.ones,
}


def _mel_filters(config: FeatureConfig, fft_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 [fft_size // 2 + 1, mel]: triangles of height 1, corners evenly spaced in mel; their heights and centres.

    Kaldi's have straight sides in mel; Slaney's have an area of 1 and straight sides in Hz.
    """
    slaney = config.kind == "nemo"
    mel = _slaney_mel if slaney else _htk_mel
    bins = np.arange(fft_size // 2 + 1) * config.sample_rate / fft_size
    corners = np.linspace(mel(config.low_freq), mel(config.high_freq), config.num_mel_bins + 2)
    if slaney:
        hertz = np.where(corners < 15.0, corners * 200.0 / 3, 1000.0 * np.exp((corners - 15.0) * np.log(6.4) / 27))
        corners = hertz
    else:
        hertz = 700.0 * np.expm1(corners / 1127.0)
        bins = mel(bins)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = bins[:, None]
    filters = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    if not filters.shape[1] or not filters.any(axis=0).all():
        raise FeatureError(
            f"features.num_mel_bins={config.num_mel_bins} leaves filters without a frequency, or none at all, between "
            f"{config.low_freq} and {config.high_freq} Hz: choose fewer (at least 1), or a longer "
            "features.frame_length_ms"
        )
    return filters, 2 / (right - left) if slaney else np.ones(len(left)), hertz[1:-1]


def _htk_mel(frequency: Any) -> Any:
    return 1127.0 * np.log1p(np.asarray(frequency, np.float64) / 700.0)


def _slaney_mel(frequency: Any) -> Any:
    """Linear up to 1 kHz, where it is 15, then logarithmic."""
    frequency = np.asarray(frequency, np.float64)
    logarithmic = 15.0 + 27 * np.log(np.maximum(frequency, 1000.0) / 1000.0) / np.log(6.4)
    return np.where(frequency < 1000.0, frequency * 3 / 200.0, logarithmic)


def reflect(positions: Any, length: Any) -> Any:
    """Positions outside [0, length) mirrored into it, as often as it takes: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ..."""
    positions = positions % (2 * length)
    return positions + (positions >= length) * (2 * length - 1 - 2 * positions)
