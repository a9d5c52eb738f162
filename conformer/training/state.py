"""What a training run carries from step to step: one explicit pytree, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

from conformer.config import Config, TrainConfig
from conformer.model import ConformerCTC
from kernels.typing import Array, Float, Int

MAP_WIDTH = 32  # inputs and outputs of a linear map, at least


class TrainState(NamedTuple):
    """Everything that a checkpoint holds. `step` counts updates tried, skipped ones included."""

    step: Int[Array, ""]
    params: nnx.State
    statistics: nnx.State  # of the features; not trained
    average: nnx.State  # exponential moving average of params: what is evaluated and shipped
    optimiser: Any  # optax state
    loss_scale: DynamicScale | None  # float16 only
    skipped: Int[Array, ""]  # updates skipped because they were not finite
    skipped_in_a_row: Int[Array, ""]


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine down to zero at the last step."""
    warmup = min(config.warmup_steps, config.num_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.num_steps)


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW, or Muon for linear maps and Nesterov's AdamW for the rest, on gradients clipped by their global norm.

    Weight decay is on matrices alone. An update of Muon (Jordan et al., 2024) is the orthogonal factor of a matrix's
    momentum, scaled to the root mean square of an AdamW update (0.2; Liu et al., 2025, "Muon is Scalable for LLM
    Training", eq. 4), so that both take the same learning rate.
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
        update = optax.contrib.muon(
            schedule,
            adam_b2=config.beta2,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=lambda params: jax.tree.map(_orthogonalised, params),
            consistent_rms=0.2,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _orthogonalised(param: Array) -> optax.contrib.MuonDimensionNumbers | None:
    """Linear maps; not biases by distance, nor the few taps of a depthwise convolution."""
    return optax.contrib.MuonDimensionNumbers() if param.ndim == 2 and min(param.shape) >= MAP_WIDTH else None


def make_model(config: Config, *, compute: str = "float32") -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A model initialised from config.seed, split into (structure, parameters, statistics)."""
    model = ConformerCTC(config, compute=compute, rngs=nnx.Rngs(config.seed))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    return graphdef, params, statistics


def initial_state(
    config: Config, feature_mean: Float[np.ndarray, " mel"], feature_std: Float[np.ndarray, " mel"]
) -> tuple[nnx.GraphDef, TrainState]:
    """The state before the first step; the statistics of the training features become part of the model."""
    graphdef, params, statistics = make_model(config, compute=config.train.compute)
    statistics["feature_mean"][...] = jnp.asarray(feature_mean)
    statistics["feature_scale"][...] = 1.0 / jnp.maximum(jnp.asarray(feature_std), 1e-5)
    return graphdef, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        average=jax.tree.map(jnp.copy, params),
        optimiser=make_optimiser(config.train).init(params),
        # As arrays: its counter starts as a Python int, which no checkpoint takes and which compiles the step twice.
        loss_scale=jax.tree.map(jnp.asarray, DynamicScale()) if config.train.compute == "float16" else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def count_parameters(params: nnx.State) -> int:
    """The number of trained values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
