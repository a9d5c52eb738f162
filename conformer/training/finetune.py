"""Training that begins with the weights of a trained model: which of them it takes."""

import fnmatch
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import ConfigError
from conformer.training.checkpoint import load_model
from conformer.training.names import HEAD, by_name, matching, name_of
from conformer.training.state import TrainState


def begin_with(
    state: TrainState, workdir: str | pathlib.Path, init_random: Sequence[str] = ()
) -> tuple[TrainState, list[str]]:
    """The state before the first step, with the averaged weights and the statistics of the model of `workdir`.

    A head for other units keeps its random weights, and so does what the patterns `init_random` name.

    Returns:
        The state, and the names of the parameters that are still random.

    Raises:
        ConfigError: where another parameter is missing, left over or of another shape; the message lists them. Or where
            a pattern names nothing of the network.
    """
    _, model, _, _ = load_model(workdir)
    _, params, statistics = nnx.split(model, nnx.Param, ...)
    given = by_name(params) | by_name(statistics)
    wanted = by_name(state.average) | by_name(state.statistics)
    random, wrong = sorted(matching(init_random, wanted, "train.init_random", "parameter")), []
    for name in sorted(given | wanted):
        if any(fnmatch.fnmatch(name, pattern) for pattern in init_random):  # what the other network has there is left
            continue
        here, there = wanted.get(name), given.get(name)
        if here is not None and there is not None and here.shape == there.shape:
            continue
        (random if name.startswith(HEAD) else wrong).append(name)
    if wrong:
        shown = ", ".join(f"{name} ({_shape(given, name)} there, {_shape(wanted, name)} here)" for name in wrong[:3])
        more = f" and {len(wrong) - 3} others" if len(wrong) > 3 else ""
        raise ConfigError(
            f"train.init_from={workdir} holds another network: {shown}{more}. Set `features` and `model` to the values "
            "of its config.json, or name in train.init_random what shall begin at random"
        )

    def taken(path: Any, leaf: jax.Array) -> jax.Array:
        name = name_of(path)
        if name in random or name not in given:  # adapters
            return leaf
        return jax.device_put(jnp.array(given[name], leaf.dtype), leaf.sharding)  # a copy: states are donated

    fields = ("params", "frozen", "average", "statistics")
    return state._replace(**{key: jax.tree.map_with_path(taken, getattr(state, key)) for key in fields}), random


def _shape(leaves: dict[str, Any], name: str) -> str:
    return str(list(leaves[name].shape)) if name in leaves else "absent"
