"""A change of a model's weights that leaves its function alone and makes its residual stream larger."""

import math

from flax import nnx

from conformer.model import ConformerCTC


def scale_residual(model: ConformerCTC, factor: float) -> ConformerCTC:
    """A copy whose residual stream is `factor` times as large, with the same outputs.

    Only normalisations read the stream, and these are invariant to scale once eps follows: LN(a x; a^2 eps) =
    LN(x; eps). So what writes to the stream is multiplied (the front end's projection, the last layer of each branch,
    the norm at the end of each block but the last), and eps of what reads from it, by factor^2. With a power of two the
    float32 result is the same, bit for bit. The streams of current language models have such peaks by nature.

    Raises:
        ValueError: for a factor that is not a power of two.
    """
    if factor <= 0 or math.frexp(factor)[0] != 0.5:
        raise ValueError(f"factor={factor} is not a power of two: only these leave the function exactly alone")
    model = nnx.clone(model)
    _multiply(model.encoder.subsampling.projection, factor)
    for index, block in enumerate(model.encoder.blocks):
        for branch, output in (
            (block.first_feed_forward, block.first_feed_forward.contract),
            (block.attention, block.attention.output),
            (block.convolution, block.convolution.output),
            (block.second_feed_forward, block.second_feed_forward.contract),
        ):
            branch.norm.eps *= factor**2
            _multiply(output, factor)
        block.norm.eps *= factor**2
        if index + 1 < len(model.encoder.blocks):
            block.norm.scale[...] *= factor
            block.norm.bias[...] *= factor
    return model


def _multiply(layer: nnx.Linear, factor: float) -> None:
    layer.kernel[...] *= factor
    assert layer.bias is not None
    layer.bias[...] *= factor
