"""The functions that converters take: the network in the layout `constant`, for a stream's step or a recording."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from conformer.artefacts.geometry import MASKED, Geometry
from conformer.export.formats import Interface
from conformer.model import ConformerCTC
from conformer.model.layouts.constant import Constant
from conformer.model.layouts.layout import Past
from conformer.model.layouts.stabilised import Stabilised
from conformer.model.positions import distance_sinusoids, known_sinusoids, sinusoids

LAYOUT = Constant()
LAYOUTS = {"float16-stable": Stabilised()}  # of numerics that have one of their own


def lay_out(model: ConformerCTC, geometry: Geometry) -> ConformerCTC:
    """The model for streams of these sizes, ready for `model.logits(window, mask, pasts, LAYOUT)`.

    The window holds features that are not normalised; the mask is added to every query's scores: 0 for a valid key, a
    large negative number for another.
    """
    return LAYOUT.lay_out(model, geometry.window_frames, geometry.num_keys)


def flat_step(
    model: ConformerCTC,
    geometry: Geometry,
    head: Callable[[jax.Array], jax.Array] | None = None,
    layout: Constant = LAYOUT,
) -> Callable:
    """run(*inputs) -> (head(logits), *state), with the inputs of `Geometry.input_shapes` and the state in its order.

    The head is by default the layout's log-softmax.
    """
    head = head or layout.log_softmax
    if geometry.whole:
        return lambda *inputs: (head(whole_logits(model, geometry, layout, *inputs)),)
    model, size = lay_out(model, geometry), len(Past._fields)
    layout = layout.looking_ahead(geometry.look_ahead)

    def run(window: jax.Array, mask: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        pasts = [Past(*state[size * layer : size * (layer + 1)]) for layer in range(geometry.num_layers)]
        frames = state[size * geometry.num_layers :]  # of the stream, where positions are absolute
        positions = key_positions(geometry, frames[0]) if frames else None
        logits, pasts = model.logits(window, mask, pasts, layout, positions)
        return head(logits), *jax.tree.leaves(pasts), *(count + geometry.chunk_size for count in frames)

    return run


def whole_logits(model: ConformerCTC, geometry: Geometry, layout: Constant, *inputs: jax.Array) -> jax.Array:
    """Computes the logits of a whole recording, (frames, vocab); those of frames outside of it have no meaning.

    Args:
        inputs: as `Geometry.input_shapes` lists them.
    """
    values = dict(zip(geometry.input_shapes, inputs, strict=True))
    inside, frames = values["inside"], geometry.chunk_size
    positions = None
    if geometry.positions == "absolute":
        positions = known_sinusoids(np.arange(frames), geometry.encoder_dim)
    elif geometry.positions == "relative":
        positions = distance_sinusoids(frames, frames, geometry.encoder_dim)
    seen = (inside[:, 0] - 1.0) * -MASKED
    options = {"positions": positions, "inside": inside, "heard": values.get("heard")}
    return model.logits(values["window"], seen, None, layout, **options)[0]


def key_positions(geometry: Geometry, frames: jax.Array) -> jax.Array:
    """The sinusoids of all keys of the chunk that begins after so many frames, (keys, encoder_dim)."""
    keys = np.arange(-geometry.left, geometry.window_frames, dtype=np.float32)
    return sinusoids(frames + keys, geometry.encoder_dim)


def specifications(geometry: Geometry) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes and types of the inputs of `flat_step`."""
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in geometry.input_shapes.values()]


def describe(geometry: Geometry, output: str) -> Interface:
    """Names and shapes of what goes in and out."""
    tensors = {name: ["float32", list(shape)] for name, shape in geometry.input_shapes.items()}
    result = {output: ["float32", [geometry.chunk_size, geometry.vocab_size]]}
    return Interface(tensors, result | {f"next_{name}": tensors[name] for name in geometry.state_shapes})
