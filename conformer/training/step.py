"""One update: audio -> features -> loss -> gradient -> parameters, as a single compiled function."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from conformer.augment import spec_augment, warp_frequencies
from conformer.config import Config, TrainConfig
from conformer.ctc import ctc_loss
from conformer.data import Batch
from conformer.features import log_mel
from conformer.filterbank import plan_of
from conformer.training.consistency import disagreement, two_views
from conformer.training.denominator import log_denominator
from conformer.training.lora import merged
from conformer.training.mesh import gather, keep_in_place, make_mesh, random_key
from conformer.training.state import TrainState, learning_rate, make_optimiser
from kernels.typing import Array, Float, Int


def make_train_step(
    config: Config,
    graphdef: nnx.GraphDef,
    mesh: Mesh | None = None,
    bigram: Float[np.ndarray, "vocab vocab"] | None = None,
) -> Callable:
    """Returns step(state, batch, chunk_size, num_left_chunks) -> (state, metrics), compiled once a bucket.

    Every random choice is a pure function of (config.seed, state.step), so that a run resumed from a checkpoint repeats
    an undisturbed one bit for bit. An update whose loss or gradient is not finite leaves the parameters as they were.

    Args:
        mesh: where state and batch lie, by `place_state` and `place_batch`; None = on one device. The choices are the
            same on any; sums over devices are rounded otherwise.
        bigram: of units (`unit_bigram`); needed where `train.mmi_weight` is not 0.

    Raises:
        ValueError: `train.mmi_weight` is not 0, and no bigram is given.
    """
    if config.train.mmi_weight and bigram is None:
        raise ValueError(f"train.mmi_weight={config.train.mmi_weight} needs a bigram of the units: give unit_bigram's")
    mesh = make_mesh(1, jax.devices()[:1]) if mesh is None else mesh
    optimiser = make_optimiser(config.train)
    schedule = learning_rate(config.train)
    accumulate = config.train.accumulate

    def loss_fn(params, frozen, statistics, batch, num_labels, chunk_size, num_left_chunks, key, mask_strength):
        params = merged(config.train, gather(mesh, params), gather(mesh, frozen))
        model = nnx.merge(graphdef, params, statistics, copy=True)  # it changes its statistics
        dither_key, mask_key, dropout_key = jax.random.split(key, 3)
        features, lengths = log_mel(config.features, batch.audio, batch.audio_lengths, dither_key)
        labels = batch.labels, batch.label_lengths
        if config.train.consistency_weight:
            features, lengths, *labels = (jnp.concatenate([a, a]) for a in (features, lengths, *labels))
            chunk_size, num_left_chunks = two_views(len(batch.audio), chunk_size, num_left_chunks)
        if config.augment.frequency_warp:
            centres = plan_of(config.features).centres
            features = warp_frequencies(config.augment, features, centres, jax.random.fold_in(mask_key, 0))
        features = spec_augment(config.augment, model.standardise(features), lengths, mask_key, mask_strength)
        outputs, lengths = model.encoder.outputs(
            features, lengths, chunk_size=chunk_size, num_left_chunks=num_left_chunks, dropout_key=dropout_key
        )
        logits = model.head(outputs[-1])
        loss = ctc_loss(logits, lengths, *labels)
        if weight := config.train.mmi_weight:
            loss = loss + weight * log_denominator(logits, lengths, jnp.asarray(bigram))
        if weight := config.train.intermediate_weight:  # Lee and Watanabe, 2021, "Intermediate Loss Regularization"
            middle = model.head(outputs[len(outputs) // 2 - 1])
            loss = (1 - weight) * loss + weight * ctc_loss(middle, lengths, *labels)
        if weight := config.train.consistency_weight:
            first, second = jnp.split(logits, 2)
            loss = loss.reshape(2, -1).mean(0) + weight * disagreement(first, second, lengths[: len(first)])
        # Filler rows hold no labels and no audio; their loss may be anything.
        loss = jnp.sum(jnp.where(batch.weights > 0, loss, 0.0)) / num_labels
        return loss, nnx.state(model, nnx.Not(nnx.Param))  # as the forward pass left them

    gradient_of = functools.partial(jax.value_and_grad, has_aux=True)

    def in_parts(params, frozen, statistics, batch, num_labels, chunk_size, num_left_chunks, key, mask_strength):
        """The loss of a batch and its gradient, from those of parts of its rows, computed one after another."""

        def add(total, part):
            index, rows = part
            arguments = (rows, num_labels, chunk_size, num_left_chunks, jax.random.fold_in(key, index), mask_strength)
            total, statistics = total
            (loss, statistics), gradient = gradient_of(loss_fn)(params, frozen, statistics, *arguments)
            total = jax.tree.map(jnp.add, total, (loss, gradient))
            return ((total[0], keep_in_place(mesh, total[1])), statistics), None

        # Every accumulate-th row: rows next to each other lie on one device.
        parts = jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, accumulate, *rows.shape[1:]), 1, 0), batch)
        nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        start = nothing, statistics
        ((loss, gradient), statistics), _ = jax.lax.scan(add, start, (jnp.arange(accumulate), parts))
        return (loss, statistics), gradient

    @jax.jit(donate_argnums=0)
    def step(state: TrainState, batch: Batch, chunk_size: Int[Array, ""], num_left_chunks: Int[Array, ""]):
        # Not threefry, JAX's default: on a CPU its loops take a tenth of a small model's step.
        key = jax.random.fold_in(random_key(mesh, config.seed), state.step)
        # Masks keep a model that has learned nothing yet on CTC's plateau of blanks.
        mask_strength = jnp.minimum(1.0, state.step / max(config.augment.mask_ramp_steps, 1))
        num_labels = jnp.maximum(jnp.sum(batch.label_lengths * batch.weights), 1.0)
        values = state.params, state.frozen, state.statistics
        arguments = (*values, batch, num_labels, chunk_size, num_left_chunks, key, mask_strength)
        loss_scale = state.loss_scale
        if accumulate > 1:
            (loss, statistics), gradient = in_parts(*arguments)
        elif loss_scale is None:
            (loss, statistics), gradient = gradient_of(loss_fn)(*arguments)
        else:
            loss_scale, _, (loss, statistics), gradient = loss_scale.value_and_grad(loss_fn, has_aux=True)(*arguments)
        gradient = keep_in_place(mesh, gradient)
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def update(params, average, optimiser_state):
            updates, optimiser_state = optimiser.update(gradient, optimiser_state, params)
            params = optax.apply_updates(params, updates)
            # The average is young at first: let it follow faster, or it would remember the initial weights.
            decay = jnp.minimum(config.train.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            now = merged(config.train, params, state.frozen)  # pyright: ignore[reportArgumentType]
            # In this form, what does not move is not rounded either.
            average = jax.tree.map(lambda new, old: old + (1.0 - decay) * (new - old), now, average)
            return params, average, optimiser_state

        old = (state.params, state.average, state.optimiser)
        params, average, optimiser_state = jax.lax.cond(finite, update, lambda *unchanged: unchanged, *old)
        statistics = jax.tree.map(lambda new, old: jnp.where(finite, new, old), statistics, state.statistics)
        skipped = jnp.where(finite, 0, 1)
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step - state.skipped),  # the optimiser counts updates made
            "skipped": state.skipped + skipped,
            "skipped_in_a_row": (state.skipped_in_a_row + 1) * skipped,
        }
        if loss_scale is not None:
            metrics["loss_scale"] = loss_scale.scale
        state = state._replace(
            step=state.step + 1,
            params=params,
            statistics=statistics,
            average=average,
            optimiser=optimiser_state,
            loss_scale=loss_scale,
            skipped=metrics["skipped"],
            skipped_in_a_row=metrics["skipped_in_a_row"],
        )
        return keep_in_place(mesh, state), metrics

    return step


def draw_chunk(config: TrainConfig, seed: int, step: int) -> tuple[np.int32, np.int32]:
    """The (chunk_size, num_left_chunks) of a step, drawn from the configured ones: dynamic chunk training."""
    rng = np.random.default_rng((seed, step, 1))
    chunk_size = np.int32(rng.choice(config.chunk_sizes))
    num_left_chunks = np.int32(rng.choice(config.num_left_chunks))
    return chunk_size, num_left_chunks if chunk_size > 0 else np.int32(-1)
