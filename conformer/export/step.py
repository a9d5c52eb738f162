"""The streaming step as converters translate it best: one stream, arrays of rank two and three, and no integers.

Each function is what the module of its first argument computes; weights are those of the trained model, as constants.
What differs from `Encoder.step` is form alone: which keys are valid comes in as a mask to add to scores, since small
runtimes lack integer arithmetic; constant factors and the position bias are laid out beforehand; and every operation
is one that ONNX and LiteRT have an operator for.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.artefacts.geometry import BlockState
from conformer.model import ConformerCTC
from conformer.model.attention import Attention
from conformer.model.block import Block
from conformer.model.convolution import Convolution
from conformer.model.feed_forward import FeedForward
from conformer.model.layers import LayerNorm
from conformer.model.subsampling import DenseConv, Subsampling
from kernels.typing import Array, Float

ONE = np.float32(1)


def step(
    model: ConformerCTC,
    window: Float[Array, "window mel"],
    mask: Float[Array, " keys"],
    states: Sequence[BlockState],
) -> tuple[Float[Array, "frames vocab"], tuple[BlockState, ...]]:
    """The logits of the next chunk of a stream, and its next state.

    Args:
        window: features, not normalised.
        mask: added to every query's scores: 0 for a valid key, a large negative number for another.
    """
    x = front_end(model.encoder.subsampling, model.normalise(window[None]))
    new_states = []
    for module, state in zip(model.encoder.blocks, states, strict=True):
        x, new_state = block(module, x, mask, state)
        new_states.append(new_state)
    return linear(model.head, x), tuple(new_states)


def front_end(module: Subsampling, features: Float[Array, "1 window mel"]) -> Float[Array, "frames channels"]:
    """Convolutions over (time, frequency), channels last."""
    x = features[..., None]
    for stage in module.stages:
        if isinstance(stage, DenseConv):
            x = _convolve(x, stage.kernel[...], stage.strides) + stage.bias[...]
        else:
            kernel = stage.kernel[...]
            x = _convolve(x, kernel[:, :, None], stage.strides, groups=kernel.shape[2])
            x = linear(stage.pointwise, x)
        x = jax.nn.relu(x)
    return linear(module.projection, x.reshape(x.shape[1], -1))


def block(
    module: Block, x: Float[Array, "frames channels"], mask: Float[Array, " keys"], state: BlockState
) -> tuple[Float[Array, "frames channels"], BlockState]:
    """See `Block`."""
    x = x + feed_forward(module.first_feed_forward, x)
    attended, key, value = attention(module.attention, x, mask, state.key, state.value)
    x = x + attended
    convolved, inputs = convolution(module.convolution, x, state.inputs)
    x = x + convolved
    x = x + feed_forward(module.second_feed_forward, x)
    return norm(module.norm, x), BlockState(key[:, len(x) :], value[:, len(x) :], inputs[len(x) :])


def feed_forward(module: FeedForward, x: Float[Array, "frames channels"]) -> Float[Array, "frames channels"]:
    """Half of it, as a block adds it; the half is in the weights."""
    hidden = jax.nn.swish(linear(module.expand, norm(module.norm, x)))
    return linear(module.contract, hidden, np.float32(0.5))


def attention(
    module: Attention,
    x: Float[Array, "frames channels"],
    mask: Float[Array, " keys"],
    past_key: Float[Array, "heads left head_dim"],
    past_value: Float[Array, "heads left head_dim"],
) -> tuple[Float[Array, "frames channels"], Float[Array, "heads keys head_dim"], Float[Array, "heads keys head_dim"]]:
    """Returns the output, and the keys and values of past and x together. The query's scale is in the weights."""
    frames, channels = x.shape
    scale = np.ones(3 * channels, np.float32)
    scale[:channels] = (channels // module.num_heads) ** -0.5
    heads = linear(module.query_key_value, norm(module.norm, x), scale).reshape(frames, 3 * module.num_heads, -1)
    query, new_key, new_value = jnp.split(heads.transpose(1, 0, 2), 3)
    key = jnp.concatenate([past_key, new_key], axis=1)
    value = jnp.concatenate([past_value, new_value], axis=1)
    bias = position_bias(module.relative_bias[...], frames, key.shape[1])
    weights = jax.nn.softmax(jnp.matmul(query, key.transpose(0, 2, 1)) + (bias + mask))
    out = jnp.matmul(weights, value).transpose(1, 0, 2).reshape(frames, channels)
    return linear(module.output, out), key, value


def position_bias(relative_bias: Float[Array, "heads distances"], num_queries: int, num_keys: int) -> np.ndarray:
    """float32 [heads, queries, keys], a constant: the learned bias of each pair of positions."""
    table = np.asarray(relative_bias)
    largest = table.shape[1] // 2
    position = np.arange(num_keys)
    distance = position[-num_queries:, None] - position
    return table[:, np.clip(distance, -largest, largest) + largest]


def convolution(
    module: Convolution, x: Float[Array, "frames channels"], past: Float[Array, "past channels"]
) -> tuple[Float[Array, "frames channels"], Float[Array, "inputs channels"]]:
    """Returns the output, and the inputs of the depthwise convolution."""
    value, gate = jnp.split(linear(module.gate, norm(module.norm, x)), 2, axis=-1)
    inputs = jnp.concatenate([past, value * jax.nn.sigmoid(gate)])
    y = _convolve(inputs[None], module.kernel[...][:, None], (1,), groups=x.shape[1])[0]
    return linear(module.output, jax.nn.swish(norm(module.middle_norm, y))), inputs


def linear(
    module: nnx.Linear, x: Float[Array, "*batch in"], scale: np.ndarray | np.float32 = ONE
) -> Float[Array, "*batch out"]:
    """(x W + b) scale, the scale multiplied into the weights."""
    assert module.bias is not None  # every linear map of the model has one
    return x @ (np.asarray(module.kernel[...]) * scale) + np.asarray(module.bias[...]) * scale


def norm(module: LayerNorm, x: Float[Array, "frames channels"]) -> Float[Array, "frames channels"]:
    """As Flax has it, which converters know; the variance as the mean square of what is centred."""
    own = nnx.LayerNorm(x.shape[-1], epsilon=module.eps, use_fast_variance=False, rngs=nnx.Rngs(0))
    own.scale, own.bias = nnx.Param(module.scale[...]), nnx.Param(module.bias[...])
    return own(x)


def _convolve(
    x: Float[Array, "1 *space in"], kernel: Float[Array, "..."], strides: tuple[int, ...], groups: int = 1
) -> Float[Array, "1 *out_space out"]:
    space = x.ndim - 2
    layout = ("NWC", "WIO", "NWC") if space == 1 else ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, strides, "VALID", dimension_numbers=layout, feature_group_count=groups
    )
