"""Training that begins with the weights of a trained model: which of them it takes, and how far each may move."""

import fnmatch
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from conformer.config import ConfigError, TrainConfig
from conformer.training.checkpoint import load_model
from conformer.training.state import TrainState

HEAD = "head."  # its parameters belong to the units, the others to speech


def begin_with(state: TrainState, workdir: str | pathlib.Path) -> tuple[TrainState, list[str]]:
    """The state before the first step, with the averaged weights and the statistics of the model of `workdir`.

    A head for other units keeps its random weights.

    Returns:
        The state, and the names of the parameters that are still random.

    Raises:
        ConfigError: where another parameter is missing, left over or of another shape; the message lists them.
    """
    _, model, _, _ = load_model(workdir)
    _, params, statistics = nnx.split(model, nnx.Param, ...)
    given = by_name((params, statistics))
    wanted = by_name((state.params, state.statistics))
    random, wrong = [], []
    for name in sorted(given | wanted):
        here, there = wanted.get(name), given.get(name)
        if here is not None and there is not None and here.shape == there.shape:
            continue
        (random if name.startswith(HEAD) else wrong).append(name)
    if wrong:
        shown = ", ".join(f"{name} ({_shape(given, name)} there, {_shape(wanted, name)} here)" for name in wrong[:3])
        more = f" and {len(wrong) - 3} others" if len(wrong) > 3 else ""
        raise ConfigError(
            f"train.init_from={workdir} holds another network: {shown}{more}. Set `features` and `model` to the values "
            "of its config.json"
        )

    def taken(path: Any, leaf: jax.Array) -> jax.Array:
        name = name_of(path)
        return leaf if name in random else jax.device_put(jnp.asarray(given[name], leaf.dtype), leaf.sharding)

    params = jax.tree.map_with_path(taken, state.params)
    statistics = jax.tree.map_with_path(taken, state.statistics)
    return state._replace(params=params, average=jax.tree.map(jnp.copy, params), statistics=statistics), random


def scale_updates(config: TrainConfig) -> optax.GradientTransformation:
    """Updates times 0 for what `train.frozen` names, and times `train.encoder_rate` for the rest of the encoder.

    Raises ConfigError for a pattern that names nothing.
    """

    def init(params: Any) -> optax.EmptyState:
        names = list(by_name(params))
        for pattern in config.frozen:
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"train.frozen: {pattern!r} names no parameter; there are {', '.join(names[:4])}, ..."
                )
        return optax.EmptyState()

    def factor(name: str) -> float:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.frozen):
            return 0.0
        return 1.0 if name.startswith(HEAD) else config.encoder_rate

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree.map_with_path(lambda path, leaf: factor(name_of(path)) * leaf, updates), state

    return optax.GradientTransformation(init, update)


def by_name(tree: Any) -> dict[str, Any]:
    """Every array by its path, such as "encoder.blocks.0.attention.query.kernel"."""
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def name_of(path: Any) -> str:
    parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    return ".".join(part for part in parts if part != "value")


def _shape(leaves: dict[str, Any], name: str) -> str:
    return str(list(leaves[name].shape)) if name in leaves else "absent"
