"""Names each array of a tree, for checkpoints, patterns of parameters and messages."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from conformer.config import ConfigError

HEAD = "head."  # its parameters belong to the units, the others to speech


def by_name(tree: Any) -> dict[str, Any]:
    """Every array by the path that leads to it, such as "encoder.blocks.0.attention.output.kernel"."""
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def name_of(path: Any) -> str:
    return without_value(jax.tree_util.keystr(path, simple=True, separator="."))


def without_value(name: str) -> str:
    """The name of an array from that of its place in an nnx.Variable."""
    return name.removesuffix(".value")


def matching(patterns: Sequence[str], names: Iterable[str], key: str, things: str) -> set[str]:
    """The names that any of the patterns matches. Raises ConfigError for a pattern of `key` that names nothing."""
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        if not (matched := fnmatch.filter(names, pattern)):
            raise ConfigError(f"{key}: {pattern!r} names no {things}; there are {', '.join(names[:4])}, ...")
        found |= set(matched)
    return found
