"""The exporters' form: one stream, arrays of rank two and three, weights and position biases as constants.

Which keys are valid comes in as a mask to add to scores, since small runtimes lack integer arithmetic; constant factors
are multiplied into the weights; and every operation is one that ONNX and LiteRT have an operator for.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.model.layouts.layout import Layout, Past, Scale
from conformer.model.norm import LayerNorm
from kernels.chunked_attention import relative_shift, skew
from kernels.typing import Array, Float


class Constant(Layout):
    """(frames, channels) after the front end, (1, time, frequency, channels) in it.

    The state is that of one stream: keys and values (heads, left, head_dim), inputs (past, channels). The model must be
    laid out (`lay_out`), except for whole recordings, which have no state.
    """

    name = "constant"

    def image(self, features: Float[Array, "window mel"]):
        return features[None, ..., None]

    def stack(self, x, count):
        _, time, bins, channels = x.shape
        return x[:, : time // count * count].reshape(1, time // count, count * bins, channels)

    def convolve(self, x, kernel, bias, strides):
        return _convolve(x, kernel, strides) + bias

    def filter(self, x, kernel, strides):
        return _convolve(x, kernel[:, :, None], strides, groups=kernel.shape[2])

    def flatten(self, x):
        return x.reshape(x.shape[1], -1)

    def linear(self, module, x, scale: Scale = 1.0):
        weight, bias = weights(module, scale)
        return x @ weight + bias

    def norm(self, module, x):
        """Normalises with Flax's LayerNorm, which converters know; the variance is taken of centred values."""
        if not isinstance(module, LayerNorm):
            self.lacks(module)
        own = nnx.LayerNorm(x.shape[-1], epsilon=module.eps, use_fast_variance=False, rngs=nnx.Rngs(0))
        own.scale, own.bias = nnx.Param(module.scale[...]), nnx.Param(module.bias[...])
        return own(x)

    def softmax(self, scores: Any) -> Any:
        """Computes the softmax over keys, which is an operator of its own in every format."""
        return jax.nn.softmax(scores)

    def log_softmax(self, logits: Any) -> Any:
        """Computes the log-softmax over units."""
        return jax.nn.log_softmax(logits)

    def mask(self, x, inside):
        return x if inside is None else x * inside

    def pad(self, x, before, after):
        return jnp.pad(x, ((before, after), (0, 0)))

    def extend(self, past, x):
        return jnp.concatenate([past, x])

    def settled(self, x):
        return x[: len(x) - self.look_ahead]

    def newest(self, x, count):
        end = len(x) - self.look_ahead
        return x[end - count : end]

    def depthwise(self, x, kernel, bias=None):
        y = _convolve(x[None], kernel[:, None], (1,), groups=x.shape[1])[0]
        return y if bias is None else y + bias

    def attend(self, module, projected, seen: Float[Array, " keys"], past: Past | None, positions=None):
        frames, channels = projected.shape[0], projected.shape[1] // 3
        heads = projected.reshape(frames, 3 * module.num_heads, -1)
        query, key, value = jnp.split(heads.transpose(1, 0, 2), 3)
        if past is not None:
            key, value = (jnp.concatenate(pair, axis=1) for pair in ((past.key, key), (past.value, value)))
        attended, bias = self._position_scores(module, query, key, positions)
        weights = self.softmax(jnp.matmul(query, attended.transpose(0, 2, 1)) + (bias + seen))
        out = jnp.matmul(weights, value).transpose(1, 0, 2).reshape(frames, channels)
        start, end = frames - self.look_ahead, key.shape[1] - self.look_ahead
        return out, key[:, start:end], value[:, start:end]

    def _position_scores(self, module, query, key, positions):
        """The keys, and what is added to the scores: (heads, queries or 1, keys)."""
        if module.positions == "learned":
            bias = np.asarray(module.relative_bias[...])
            return key, bias if bias.ndim == 3 else _bias_of_whole(bias, key.shape[1])
        own = np.asarray(module.position_bias[...])[:, None] * np.float32(module.scale)
        if module.positions == "relative":
            if module.distances is not None:
                distances = np.asarray(module.distances[...]).transpose(1, 2, 0)
            else:
                distances = self._heads(module, positions).transpose(0, 2, 1)
            return key, relative_shift(jnp.matmul(query + own, distances))
        places = self._heads(module, positions)
        return key + places, own @ places.transpose(0, 2, 1)

    def _heads(self, module, positions):
        """Maps sinusoids, as each block does, to (heads, positions, head_dim)."""
        places = self.linear(module.position, positions)
        return places.reshape(len(places), module.num_heads, -1).transpose(1, 0, 2)


def _bias_of_whole(bias: np.ndarray, frames: int) -> Array:
    """The learned bias of all pairs of frames. A row for each head is stored: all pairs would outgrow the weights."""
    largest = bias.shape[1] // 2
    row = bias[:, np.clip(np.arange(frames - 1, -frames, -1), -largest, largest) + largest]
    return skew(jnp.asarray(row), frames)


def weights(module: nnx.Linear, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """W scale and b scale of a linear map, (in, out) and (out,)."""
    weight = np.asarray(module.kernel[...])
    bias = np.zeros(weight.shape[1], np.float32) if module.bias is None else np.asarray(module.bias[...])
    parts = np.array(scale if isinstance(scale, tuple) else (scale,), np.float32)
    factor = np.repeat(parts, len(bias) // len(parts))
    return weight * factor, bias * factor


def _convolve(
    x: Float[Array, "1 *space in"], kernel: Any, strides: tuple[int, ...], groups: int = 1
) -> Float[Array, "1 *out_space out"]:
    layout = ("NWC", "WIO", "NWC") if x.ndim == 3 else ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, strides, "VALID", dimension_numbers=layout, feature_group_count=groups
    )
