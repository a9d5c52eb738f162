"""Scales the residual stream of a model by a change of its weights that keeps its function the same."""

import math
from collections.abc import Iterable

import jax
from flax import nnx

from conformer.model import ConformerCTC
from conformer.model.norm import LayerNorm


def scale_residual(model: ConformerCTC, factor: float) -> ConformerCTC:
    """A copy whose residual stream is `factor` times as large, with the same outputs (see `scale_stream`)."""
    model = nnx.clone(model)
    writers, readers = [model.encoder.subsampling.projection], []
    for block in model.encoder.blocks:
        first, second = block.first_feed_forward, block.second_feed_forward
        writers += [first.contract, block.attention.output, block.convolution.output, second.contract, block.norm]
        readers += [first.norm, block.attention.norm, block.convolution.norm, second.norm, block.norm]
    scale_stream(writers[:-1], readers, factor)  # the last norm writes for the head, which has none of its own
    return model


def scale_stream(
    writers: Iterable[nnx.Module], readers: Iterable[LayerNorm | nnx.LayerNorm | nnx.RMSNorm], factor: float
) -> None:
    """Makes a residual stream `factor` times as large, in place, and leaves the model's function alone.

    Only normalisations read such a stream, and they are invariant to scale once eps follows: LN(a x; a^2 eps) =
    LN(x; eps). So the parameters of what writes to the stream are multiplied by a, and eps of what reads it by a^2.
    With a power of two the float32 result is the same, bit for bit. A factor below one brings a stream whose peaks
    exceed a narrow format back into its range, at no cost.

    Args:
        writers: layers linear in their parameters, whose outputs are added up to the stream.
        readers: the normalisations that read it.

    Raises:
        ValueError: for a factor that is not a power of two.
    """
    if factor <= 0 or math.frexp(factor)[0] != 0.5:
        raise ValueError(f"factor={factor} is not a power of two: only these leave the function exactly alone")
    for writer in writers:
        nnx.update(writer, jax.tree.map(lambda parameter: parameter * factor, nnx.state(writer, nnx.Param)))
    for reader in readers:
        if isinstance(reader, LayerNorm):
            reader.eps *= factor**2
        else:
            reader.epsilon *= factor**2
