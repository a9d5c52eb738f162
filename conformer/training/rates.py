"""The learning rates of parameters: some keep their values, and the encoder may learn slower than the head."""

from typing import Any

import jax
import optax
from flax import nnx

from conformer.config import ConfigError, TrainConfig
from conformer.training.lora import A, B
from conformer.training.names import HEAD, by_name, matching, name_of


def divide(config: TrainConfig, params: nnx.State) -> tuple[nnx.State, nnx.State]:
    """The parameters that are trained, and those that keep their values and have neither gradient nor optimiser state.

    The latter are what `train.frozen` names and, where there are adapters, all but those and the head.
    Raises ConfigError for a pattern that names nothing, and where nothing is left to train.
    """
    names = list(by_name(params))
    kept = matching(config.frozen, names, "train.frozen", "parameter")
    if config.lora_rank:
        kept |= {name for name in names if not (name.startswith(HEAD) or name.endswith((A, B)))}
    if len(kept) == len(names):
        raise ConfigError("train.frozen names every parameter: leave some to train")
    trained, frozen = nnx.split_state(params, lambda path, _: ".".join(map(str, path)) not in kept, ...)
    return trained, frozen


def scale_encoder(rate: float) -> optax.GradientTransformation:
    """Returns a transformation that multiplies the updates of all parameters but the head's by a rate."""

    def scaled(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf if name_of(path).startswith(HEAD) else rate * leaf

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scaled, updates))
