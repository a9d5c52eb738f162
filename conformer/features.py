"""Log-mel features of padded batches in JAX; `conformer/filterbank.py` defines them, and has those of streams."""

import functools

import jax
import jax.numpy as jnp

from conformer.audio import INT16_SCALE
from conformer.config import FeatureConfig
from conformer.filterbank import LOG_FLOOR, LOG_GUARD, Plan, normalised, num_frames, plan_of, reflect, scale_of
from kernels.typing import Array, Float, Int, Key


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
    audio = audio.astype(jnp.float32) * scale_of(config)
    if key is not None and config.dither > 0:
        dither = config.dither * scale_of(config) / INT16_SCALE
        audio += dither * jax.random.normal(key, audio.shape)

    def one(row: Array, length: Array) -> Array:
        return _log_mel_of_one(config, row, length, frames)

    # A CPU takes half the time when the windows of one utterance at a time pass through its caches.
    features = jax.lax.platform_dependent(
        audio, lengths, cpu=lambda *batch: jax.lax.map(lambda row: one(*row), batch), default=jax.vmap(one)
    )
    inside = jnp.arange(frames) < frame_lengths[:, None]
    if config.normalise:
        count = jnp.maximum(frame_lengths, 1)[:, None, None]
        features = normalised(jnp.where(inside[..., None], features, 0.0), count, inside[..., None])
    return jnp.where(inside[..., None], features, 0.0), frame_lengths


def _log_mel_of_one(config: FeatureConfig, audio: Array, length: Array, frames: int) -> Array:
    """[frames, mel] of one utterance on the int16 scale; frames past its own hold anything."""
    plan = plan_of(config)
    # Windows and their sums come from slices of hops: far cheaper than a gather of overlapping windows.
    hops_per_frame = -(-plan.window_length // plan.shift)
    total_samples = (frames + hops_per_frame - 1) * plan.shift
    if config.kind == "kaldi":
        signal = _reflect_ends(plan, audio, length, total_samples)
    else:
        signal = jnp.pad(audio, (plan.left, max(0, total_samples - plan.left - len(audio))))[:total_samples]
        inside = jnp.arange(total_samples) < plan.left + length
        signal = jnp.where(inside, signal, 0.0)
    emphasised = signal - config.preemphasis * jnp.pad(signal, (1, 0))[:-1]
    if config.kind == "nemo":
        return _log_energies(config, _windows(plan, jnp.where(inside, emphasised, 0.0), frames) * plan.window)
    hops = signal.reshape(-1, plan.shift)
    totals = {width: _row_sums(hops[:, :width]) for _, width in _slices(plan)}
    total = functools.reduce(jnp.add, [totals[width][i : i + frames] for i, width in _slices(plan)])
    # Pre-emphasis scales a constant by 1 - preemphasis, so the mean can be taken off after it. The barrier keeps XLA
    # from summing anew for every sample of a window.
    mean = jax.lax.optimization_barrier(total / plan.window_length)[:, None]
    windows = _windows(plan, emphasised, frames)
    return _log_energies(config, (windows - (1 - config.preemphasis) * mean) * plan.window)


def _slices(plan: Plan) -> list[tuple[int, int]]:
    """The hops of a window, and how many samples of each."""
    hops_per_frame = -(-plan.window_length // plan.shift)
    return [(i, min(plan.shift, plan.window_length - i * plan.shift)) for i in range(hops_per_frame)]


def _windows(plan: Plan, signal: Array, frames: int) -> Array:
    """[frames, window] of a signal of whole hops."""
    hops = signal.reshape(-1, plan.shift)
    return jnp.concatenate([hops[i : i + frames, :width] for i, width in _slices(plan)], axis=-1)


def _log_energies(config: FeatureConfig, windows: Array) -> Array:
    plan = plan_of(config)
    # rfft takes two thirds of the time of the same DFT as two folded matrix products (measured on 2 CPU cores).
    spectrum = jnp.fft.rfft(windows, n=plan.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # HIGHEST: a GPU's default of TF32 products would be off by 1e-3.
    energies = jnp.matmul(power, plan.filters, precision=jax.lax.Precision.HIGHEST)
    if config.kind == "nemo":
        return jnp.log(energies + LOG_GUARD)
    return jnp.log(jnp.maximum(energies, LOG_FLOOR))


def _row_sums(x: Array) -> Array:
    """x.sum(-1), pairwise: XLA's own sum rounds differently with the length of the batch, and so would features."""
    while (width := x.shape[-1]) % 2 == 0:
        x = x[:, : width // 2] + x[:, width // 2 :]
    return functools.reduce(jnp.add, [x[:, i] for i in range(width)])


def _reflect_ends(plan: Plan, audio: Array, length: Array, total: int) -> Array:
    """[total]: `audio` from position -plan.left on, reflected about 0 and `length`."""
    length = jnp.maximum(length, 1)
    before = audio[reflect(jnp.arange(-plan.left, 0), length)]
    after = audio[reflect(length + jnp.arange(plan.right), length)]
    room = max(plan.right, total - plan.left - len(audio))
    signal = jnp.concatenate([before, audio, jnp.zeros(room, audio.dtype)])
    return jax.lax.dynamic_update_slice(signal, after, (plan.left + length,))[:total]
