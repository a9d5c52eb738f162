"""The encoder as accelerators execute it: (batch, channels, 1, frames), from the same modules and parameters.

Matrix engines of small devices read tensors with the frames last, and lose most of their time where one is copied or
reshaped (docs/execution.md). So a linear map is a 1x1 convolution, attention is done a head at a time with one
transpose, of the keys, and everything else is elementwise, a reduction over channels, a slice or a concatenation.

Each function is what the module of its first argument computes, in this layout; a numerics policy that changed the
module changes it here too. `Encoder` calls `encode`, `step` and `initial_cache` where `model.execution` says so.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.attention import Attention
from conformer.model.block import Block
from conformer.model.convolution import Convolution
from conformer.model.feed_forward import FeedForward
from conformer.model.layers import dropout
from conformer.model.subsampling import DenseConv, Subsampling
from kernels.chunked_attention import chunk_rows, toeplitz
from kernels.typing import Array, Bool, Float, Int, Key


class Past(NamedTuple):
    """What a block remembers of a stream."""

    key: Float[Array, "batch past 1 channels"]  # already transposed
    value: Float[Array, "batch channels 1 past"]
    convolution: Float[Array, "batch channels 1 taps"]  # newest inputs of the depthwise convolution


def encode(
    subsampling: Subsampling,
    blocks: Iterable[Block],
    features: Float[Array, "batch time mel"],
    lengths: Int[Array, " batch"],
    chunk_size: int | Int[Array, ""],
    num_left_chunks: int | Int[Array, ""],
    dropout_key: Key[Array, ""] | None,
) -> tuple[list[Float[Array, "batch frames channels"]], Int[Array, " batch"]]:
    """`Encoder.outputs`: a transpose at each boundary that is used, one in each attention."""
    x, lengths = front_end(subsampling, features), subsampling.output_lengths(lengths)
    frames = x.shape[3]
    mask = attention_mask(*chunk_rows(frames, lengths, chunk_size, num_left_chunks), frames)
    inside = (jnp.arange(frames) < lengths[:, None])[:, None, None]
    outputs = []
    for index, module in enumerate(blocks):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        x, _ = block(module, x, mask, inside, dropout_key=key)
        outputs.append(_to_sequence(x))
    return outputs, lengths


def initial_cache(config: ModelConfig, batch_size: int, left: int) -> tuple[Past, ...]:
    """The blocks' part of `Encoder.initial_cache`, for `left` frames of left context."""
    dim, taps = config.encoder_dim, config.kernel_size - 1
    past = Past(
        key=jnp.zeros((batch_size, left, 1, dim)),
        value=jnp.zeros((batch_size, dim, 1, left)),
        convolution=jnp.zeros((batch_size, dim, 1, taps)),
    )
    return (past,) * config.num_layers


def step(
    subsampling: Subsampling,
    blocks: Iterable[Block],
    pasts: tuple[Past, ...],
    window: Float[Array, "batch window mel"],
    frames_seen: Int[Array, " batch"],
    num_frames: Int[Array, " batch"] | None,
) -> tuple[Float[Array, "batch frames channels"], tuple[Past, ...]]:
    """`Encoder.step`, of the blocks' state."""
    x = front_end(subsampling, window)
    chunk_size, left = x.shape[3], pasts[0].key.shape[1]
    num_frames = jnp.full(len(x), chunk_size) if num_frames is None else num_frames
    inside = (jnp.arange(chunk_size) < num_frames[:, None])[:, None, None]
    rows = (len(x), chunk_size)
    start = jnp.broadcast_to(left - jnp.minimum(frames_seen, left)[:, None], rows)
    end = jnp.broadcast_to(left + num_frames[:, None], rows)
    mask = attention_mask(start, end, left + chunk_size)
    new_pasts = []
    for module, past in zip(blocks, pasts, strict=True):
        x, (key, value, inputs) = block(module, x, mask, inside, past)
        new_pasts.append(Past(key[:, chunk_size:], value[..., chunk_size:], inputs[..., chunk_size:]))
    return _to_sequence(x), tuple(new_pasts)


def attention_mask(
    key_start: Int[Array, "batch queries"], key_end: Int[Array, "batch queries"], num_keys: int
) -> Bool[Array, "batch keys queries"]:
    """True where a query may attend to a key; once for all heads and blocks."""
    keys = jnp.arange(num_keys)[:, None]
    return (key_start[:, None] <= keys) & (keys < key_end[:, None])


def front_end(module: Subsampling, features: Float[Array, "batch time mel"]) -> Float[Array, "batch channels 1 frames"]:
    """Convolutions over (frequency, time), of which the last takes in all frequencies that are left."""
    module.check_length(features.shape[1])
    x = features.swapaxes(1, 2)[:, None]
    for stage in module.stages:
        if isinstance(stage, DenseConv):
            x = convolve(x, stage.kernel[...], "WHIO", stage.strides) + stage.bias[...][:, None, None]
        else:
            x = convolve(x, stage.kernel[...], "WHO", stage.strides, groups=x.shape[1])
            x = stage.pointwise.channels_first(x)
        x = jax.nn.relu(x)
    return module.projection.channels_first(x)


def block(
    module: Block,
    x: Float[Array, "batch channels 1 frames"],
    mask: Bool[Array, "batch keys frames"],
    inside: Bool[Array, "batch 1 1 frames"],
    past: Past | None = None,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "batch channels 1 frames"], Past]:
    """See `Block`; returns what a stream remembers beside the output, past and new."""
    keys = [None] * 4 if dropout_key is None else list(jax.random.split(dropout_key, 4))
    x = x + 0.5 * dropout(feed_forward(module.first_feed_forward, x), module.dropout, keys[0])
    attended, key, value = attention(module.attention, x, mask, past)
    x = x + dropout(attended, module.dropout, keys[1])
    convolved, inputs = convolution(module.convolution, x, inside, None if past is None else past.convolution)
    x = x + dropout(convolved, module.dropout, keys[2])
    x = x + 0.5 * dropout(feed_forward(module.second_feed_forward, x), module.dropout, keys[3])
    return module.norm(x, axis=1), Past(key, value, inputs)


def feed_forward(
    module: FeedForward, x: Float[Array, "batch channels 1 frames"]
) -> Float[Array, "batch channels 1 frames"]:
    parts = []
    for frames in module.slices(x.shape[0], x.shape[3]):
        hidden = jax.nn.swish(module.expand.channels_first(module.norm(x[..., frames], axis=1)))
        parts.append(module.contract.channels_first(hidden))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=3)


def attention(
    module: Attention,
    x: Float[Array, "batch channels 1 frames"],
    mask: Bool[Array, "batch keys frames"],
    past: Past | None,
) -> tuple[Float[Array, "batch channels 1 frames"], Float[Array, "batch keys 1 channels"], Float[Array, "..."]]:
    """Returns the output, and the keys and values of past and x together.

    The products are bkhc,bchq->bkq and bchk,bkq->bchq: h, of size one, is summed over with c and so costs no reshape.
    """
    query, key, value = jnp.split(module.query_key_value.channels_first(module.norm(x, axis=1)), 3, axis=1)
    query = query * (x.shape[1] // module.num_heads) ** -0.5  # before the product, which could overflow a narrow format
    key = key.transpose(0, 3, 2, 1)
    if past is not None:
        key = jnp.concatenate([past.key, key], axis=1)
        value = jnp.concatenate([past.value, value], axis=3)
    bias = position_bias(module, x.shape[3], key.shape[1])
    heads = (jnp.split(a, module.num_heads, axis) for a, axis in ((query, 1), (key, 3), (value, 1)))
    outputs = []
    for index, (q, k, v) in enumerate(zip(*heads, strict=True)):
        weights = module.softmax(jnp.einsum("bkhc,bchq->bkq", k, q) + bias[index], mask, axis=1)
        outputs.append(jnp.einsum("bchk,bkq->bchq", v, weights))
    return module.output.channels_first(jnp.concatenate(outputs, axis=1)), key, value


def position_bias(module: Attention, num_queries: int, num_keys: int) -> Float[Array, "heads keys queries"]:
    """The learned bias of each pair of positions; from parameters alone, so that a device lays it out once."""
    table = module.relative_bias[...]
    return table if table.ndim == 3 else toeplitz(table, num_queries, num_keys).swapaxes(1, 2)


def lay_out[M: nnx.Module](model: M, chunk_size: int, num_left_chunks: int) -> M:
    """A copy of a model for streams of one chunk size and left context, its position biases laid out beforehand."""
    model = nnx.clone(model)
    num_keys = chunk_size * (num_left_chunks + 1)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Attention):
            module.relative_bias = nnx.Param(position_bias(module, chunk_size, num_keys))
    return model


def convolution(
    module: Convolution,
    x: Float[Array, "batch channels 1 frames"],
    inside: Bool[Array, "batch 1 1 frames"],
    past: Float[Array, "batch channels 1 past"] | None,
) -> tuple[Float[Array, "batch channels 1 frames"], Float[Array, "batch channels 1 inputs"]]:
    """See `Convolution`: the depthwise convolution is one of 1 x taps, the gate a split of channels."""
    value, gate = jnp.split(module.gate.channels_first(module.norm(x, axis=1)), 2, axis=1)
    inputs = jnp.where(inside, value * jax.nn.sigmoid(gate), 0.0)
    context = module.kernel.shape[0] - 1
    if past is not None:
        inputs = jnp.concatenate([past, inputs], axis=3)
    else:
        margin = (context, 0) if module.causal else (context // 2, context // 2)
        inputs = jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), margin))
    y = convolve(inputs, module.kernel[...], "WO", (1, 1), groups=x.shape[1])
    return module.output.channels_first(jax.nn.swish(module.middle_norm(y, axis=1))), inputs


def convolve(
    x: Float[Array, "batch in height frames"],
    kernel: Float[Array, "..."],
    kernel_layout: str,
    strides: tuple[int, int],
    groups: int = 1,
) -> Float[Array, "batch out out_height out_frames"]:
    """A convolution without padding.

    The layout names the kernel's axes, of H (height), W (frames), I (in) and O (out); those it lacks are of one.
    Strides stand in its order.
    """
    lacking = "".join(axis for axis in "HWIO" if axis not in kernel_layout)
    kernel_layout += lacking
    return jax.lax.conv_general_dilated(
        x,
        kernel.reshape(*kernel.shape, *[1] * len(lacking)),
        strides,
        "VALID",
        dimension_numbers=("NCHW", kernel_layout, "NCHW"),
        feature_group_count=groups,
    )


def _to_sequence(x: Float[Array, "batch channels 1 frames"]) -> Float[Array, "batch frames channels"]:
    return jnp.squeeze(x, 2).swapaxes(1, 2)
