"""How fast each parameter learns: some not at all, the encoder slower than the head."""

import fnmatch
from typing import Any

import jax
import optax

from conformer.config import ConfigError, TrainConfig

HEAD = "head."  # its parameters belong to the units, the others to speech


def scale_updates(config: TrainConfig) -> optax.GradientTransformation:
    """Updates times 0 for what `train.frozen` names, and times `train.encoder_rate` for the rest of the encoder.

    Raises ConfigError for a pattern that names nothing.
    """

    def init(params: Any) -> Any:
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

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map_with_path(lambda path, leaf: factor(name_of(path)) * leaf, updates), state

    return optax.GradientTransformation(init, update)


def by_name(tree: Any) -> dict[str, Any]:
    """Every array by its path, such as "encoder.blocks.0.attention.query.kernel"."""
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def name_of(path: Any) -> str:
    parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    return ".".join(part for part in parts if part != "value")
