"""The layout (batch, frames, channels), which XLA compiles best for processors and GPUs."""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from conformer.model.layouts.layout import Layout, Past, Scale
from kernels.chunked_attention import chunked_attention
from kernels.depthwise_conv import depthwise_conv
from kernels.typing import Array, Bool, Float, Int


class Rows(NamedTuple):
    """The keys that each query attends to: [key_start, key_end)."""

    key_start: Int[Array, "batch queries"]
    key_end: Int[Array, "batch queries"]
    chunks: tuple[int, int] | None  # (chunk_size, num_left_chunks) of the ranges, where known before tracing


class Sequence(Layout):
    """Tensors with the channels last."""

    name = "sequence"

    def scope(self, name: str, residual: Array | None = None) -> contextlib.AbstractContextManager:
        return jax.named_scope(name)

    # ------------------------------------------------------------------ execution

    def seen(
        self,
        key_start: Int[Array, "batch queries"],
        key_end: Int[Array, "batch queries"],
        num_keys: int,
        chunks: tuple[int, int] | None,
    ) -> Rows:
        """Returns the ranges of keys that queries see, in the form that `attend` takes."""
        return Rows(key_start, key_end, chunks)

    def inside(self, frames: Bool[Array, "batch frames"]) -> Bool[Array, "batch frames 1"]:
        """Returns which frames are inside their utterance, in the form that `mask` takes."""
        return frames[..., None]

    def to_sequence(self, x: Float[Array, "batch frames channels"]) -> Float[Array, "batch frames channels"]:
        """Frames as the encoder hands them over."""
        return x

    def from_sequence(self, x: Float[Array, "batch frames channels"]) -> Float[Array, "batch frames channels"]:
        """Frames as the layout computes on them."""
        return x

    def past_shapes(self, batch_size: int, left: int, inputs: int, num_heads: int, dim: int) -> Past:
        """Shapes of a block's state: `left` frames of left context, `inputs` of the convolution."""
        heads = (batch_size, num_heads, left, dim // num_heads)
        return Past(heads, heads, (batch_size, inputs, dim))

    def left_context(self, past: Past) -> int:
        """Frames of left context that a state holds."""
        return past.key.shape[2]

    def position_bias(self, relative_bias, num_queries, num_keys):
        return relative_bias  # attention takes the table itself

    # ------------------------------------------------------------------ verbs

    def image(self, features):
        return features[..., None]

    def stack(self, x, count):
        batch, time, bins, channels = x.shape
        return x[:, : time // count * count].reshape(batch, time // count, count * bins, channels)

    def convolve(self, x, kernel, bias, strides):
        if x.shape[-1] == 1:  # an outer product at each tap: half the time of a convolution on the CPU
            return depthwise_conv(x, kernel[:, :, 0], stride=strides) + bias
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=layout) + bias

    def filter(self, x, kernel, strides):
        return depthwise_conv(x, jnp.asarray(kernel), stride=strides)

    def flatten(self, x):
        # Whole at last: in one loop with what follows, XLA would find the place of every value by division.
        x = jax.lax.optimization_barrier(x)
        return x.reshape(*x.shape[:2], -1)

    def mask(self, x, inside):
        return x if inside is None else jnp.where(inside, x, 0.0)

    def linear(self, module, x, scale: Scale = 1.0):
        return scaled(module(x), scale, axis=-1)

    def norm(self, module, x):
        return module(x)

    def norm_of_sum(self, module, x, y):
        return module.of_sum(x, y)

    def extend(self, past, x):
        return jnp.concatenate([past, x], axis=1)

    def settled(self, x):
        return x[:, : x.shape[1] - self.look_ahead]

    def newest(self, x, count):
        end = x.shape[1] - self.look_ahead
        return x[:, end - count : end]

    def pad(self, x, before, after):
        return jnp.pad(x, ((0, 0), (before, after), (0, 0)))

    def depthwise(self, x, kernel, bias=None):
        y = depthwise_conv(x, kernel)
        return y if bias is None else y + bias

    def attend(self, module, projected, seen: Rows, past, positions=None):
        batch, frames, channels = projected.shape[0], projected.shape[1], projected.shape[2] // 3
        heads = projected.reshape(batch, frames, 3 * module.num_heads, -1)
        query, key, value = jnp.split(heads, 3, axis=2)
        new = key, value
        if past is not None:
            # Heads first, as the products of attention want them: a stream moves each frame once, not at every step.
            pairs = zip((past.key, past.value), (key, value), strict=True)
            joined = [jnp.concatenate([old, a.swapaxes(1, 2)], axis=2) for old, a in pairs]
            start = frames - self.look_ahead
            new = tuple(a[:, :, start : start + past.key.shape[2]] for a in joined)
            key, value = (a.swapaxes(1, 2) for a in joined)
        bias, terms = None, {}
        if module.positions == "learned":
            bias = module.relative_bias[...]
        elif module.positions == "relative":
            terms["position_query"] = query + module.position_bias[...] * module.scale
            terms["position_key"] = module.distance_keys(query.shape[1], key.shape[1])
        else:
            query, key = self._placed(module, query, key, positions)
        query, key, value = (a.astype(module.compute) for a in (query, key, value))
        out = chunked_attention(
            query,
            key,
            value,
            bias,
            seen.key_start,
            seen.key_end,
            **{name: term.astype(module.compute) for name, term in terms.items()},
            softmax=module.softmax,
            chunks=seen.chunks,
            implementation=module.implementation,
        )
        return out.reshape(batch, frames, channels), *new

    def _placed(self, module, query, key, places):
        """Queries and keys with absolute positions: what a place adds for all queries alike is a channel more."""
        places = self.linear(module.position, places)
        places = places.reshape(*places.shape[:2], module.num_heads, -1)
        alike = jnp.einsum("bkhd,hd->bkh", places, module.position_bias[...] * module.scale)[..., None]
        alike, one = jnp.broadcast_to(alike, (*key.shape[:3], 1)), jnp.ones((*query.shape[:3], 1), query.dtype)
        return jnp.concatenate([query, one], axis=3), jnp.concatenate([key + places, alike], axis=3)


def scaled(x: Array, scale: Scale, axis: int) -> Array:
    """x scale; a tuple holds a factor for each equal part of the channels, which stand along `axis`."""
    if not isinstance(scale, tuple):
        return x if scale == 1.0 else x * scale
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return x * np.repeat(np.array(scale, np.float32), x.shape[axis] // len(scale)).reshape(shape)
