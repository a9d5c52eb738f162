"""The state that a training run carries from step to step: one explicit pytree, and its first value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

from conformer.config import Config, TrainConfig
from conformer.model import ConformerCTC
from conformer.training.lora import make_adapters, merged
from conformer.training.muon import muon
from conformer.training.rates import divide, scale_encoder
from kernels.typing import Array, Float, Int


class TrainState(NamedTuple):
    """Everything that a checkpoint holds. `step` counts updates tried, skipped ones included."""

    step: Int[Array, ""]
    params: nnx.State  # those that are trained, adapters among them
    frozen: nnx.State  # the others
    statistics: nnx.State  # of the features, and of BatchNorm: without a gradient
    average: nnx.State  # exponential moving average of the network's parameters: what is evaluated and shipped
    optimiser: Any  # optax state
    loss_scale: DynamicScale | None  # float16 only
    skipped: Int[Array, ""]  # updates skipped because they were not finite
    skipped_in_a_row: Int[Array, ""]


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine down to zero at the last step."""
    warmup = min(config.warmup_steps, config.num_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.num_steps)


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW, or Muon for linear maps and AdamW for the rest, on gradients clipped by their global norm.

    AdamW's weight decay is on matrices alone.
    """
    schedule = learning_rate(config)
    if config.optimiser == "adamw":
        update = optax.adamw(
            schedule,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
    else:
        precision = jnp.float32 if config.compute == "float32" else jnp.bfloat16
        update = muon(schedule, b2=config.beta2, weight_decay=config.weight_decay, precision=precision)
    steps = [optax.clip_by_global_norm(config.clip_norm), update]
    return optax.chain(*steps, *([scale_encoder(config.encoder_rate)] if config.encoder_rate != 1 else []))


def initial_state(
    config: Config, feature_mean: Float[np.ndarray, " mel"], feature_std: Float[np.ndarray, " mel"]
) -> tuple[nnx.GraphDef, TrainState]:
    """The state before the first step, initialised from config.seed; the statistics of the training features become
    part of the model.
    """
    model = ConformerCTC(config, compute=config.train.compute, rngs=nnx.Rngs(config.seed))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    if config.train.lora_rank:
        params = nnx.merge_state(params, make_adapters(config, model))
    params, frozen = divide(config.train, params)
    statistics["feature_mean"][...] = jnp.asarray(feature_mean)
    statistics["feature_scale"][...] = 1.0 / jnp.maximum(jnp.asarray(feature_std), 1e-5)
    return graphdef, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        statistics=statistics,
        average=jax.tree.map(jnp.copy, merged(config.train, params, frozen)),
        optimiser=make_optimiser(config.train).init(params),
        # As arrays: its counter starts as a Python int, which no checkpoint takes and which compiles the step twice.
        loss_scale=jax.tree.map(jnp.asarray, DynamicScale()) if config.train.compute == "float16" else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def count_parameters(params: nnx.State) -> int:
    """The number of values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
