"""The step of one stream as converters take it: the network in the layout `constant`, its state a list of arrays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from conformer.artefacts.geometry import Geometry
from conformer.export.formats import Interface
from conformer.model import ConformerCTC
from conformer.model.layouts.constant import Constant
from conformer.model.layouts.layout import Past
from conformer.model.positions import sinusoids

LAYOUT = Constant()


def lay_out(model: ConformerCTC, geometry: Geometry) -> ConformerCTC:
    """The model for streams of these sizes, ready for `model.logits(window, mask, pasts, LAYOUT)`.

    The window holds features that are not normalised; the mask is added to every query's scores: 0 for a valid key, a
    large negative number for another.
    """
    return LAYOUT.lay_out(model, geometry.chunk_size, geometry.num_left_chunks)


def flat_step(model: ConformerCTC, geometry: Geometry, head: Callable[[jax.Array], jax.Array]) -> Callable:
    """run(window, mask, *state) -> (head(logits), *state), the state in the order of `Geometry.state_shapes`."""
    model, size = lay_out(model, geometry), len(Past._fields)

    def run(window: jax.Array, mask: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        pasts = [Past(*state[size * layer : size * (layer + 1)]) for layer in range(geometry.num_layers)]
        frames = state[size * geometry.num_layers :]  # of the stream, where positions are absolute
        positions = key_positions(geometry, frames[0]) if frames else None
        logits, pasts = model.logits(window, mask, pasts, LAYOUT, positions)
        return head(logits), *jax.tree.leaves(pasts), *(count + geometry.chunk_size for count in frames)

    return run


def key_positions(geometry: Geometry, frames: jax.Array) -> jax.Array:
    """The sinusoids of all keys of the chunk that begins after so many frames, (keys, encoder_dim)."""
    keys = np.arange(-geometry.left, geometry.chunk_size, dtype=np.float32)
    return sinusoids(frames + keys, geometry.encoder_dim)


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
