"""The step with its state as a list of arrays, an input and an output each: what LiteRT and StableHLO take."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from conformer.artefacts.geometry import BlockState, Geometry
from conformer.export.formats import Interface
from conformer.export.step import step
from conformer.model import ConformerCTC


def flat_step(model: ConformerCTC, geometry: Geometry, head: Callable[[jax.Array], jax.Array]) -> Callable:
    """`step` of a list of arrays, as converters take it; `head` is of the logits."""

    def run(window: jax.Array, mask: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        size = len(BlockState._fields)
        states = [BlockState(*state[size * layer : size * (layer + 1)]) for layer in range(geometry.num_layers)]
        logits, states = step(model, window, mask, states)
        return head(logits), *jax.tree.leaves(states)

    return run


def specifications(geometry: Geometry) -> list[jax.ShapeDtypeStruct]:
    """Of what `flat_step` takes."""
    shapes = [(geometry.window, geometry.num_mel_bins), (geometry.num_keys,), *geometry.state_shapes.values()]
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def describe(geometry: Geometry, output: str) -> Interface:
    """Names and shapes of what goes in and out."""
    inputs, *state = zip(["window", "mask", *geometry.state_shapes], specifications(geometry), strict=True)
    tensors = {name: ["float32", list(array.shape)] for name, array in [inputs, *state]}
    result = {output: ["float32", [geometry.chunk_size, geometry.vocab_size]]}
    return Interface(tensors, result | {f"next_{name}": tensors[name] for name in geometry.state_shapes})
