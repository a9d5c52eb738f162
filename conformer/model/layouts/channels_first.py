"""The layout (batch, channels, 1, frames), which the accelerators of small devices compute in.

Matrix engines of small devices read tensors with the frames last, and lose most of their time where one is copied or
reshaped (docs/execution.md). So a linear map is a 1x1 convolution, attention is done a head at a time with one
transpose, of the keys, and everything else is elementwise, a reduction over channels, a slice or a concatenation.
"""

import jax
import jax.numpy as jnp

from conformer.model.layouts.layout import Past, Scale
from conformer.model.layouts.sequence import Sequence, scaled
from kernels.chunked_attention import relative_shift, toeplitz
from kernels.typing import Array, Bool, Float, Int


class ChannelsFirst(Sequence):
    """Tensors with the frames last. What is elementwise is that of `Sequence`."""

    name = "channels_first"
    channel_axis = 1

    # ------------------------------------------------------------------ execution

    def seen(
        self,
        key_start: Int[Array, "batch queries"],
        key_end: Int[Array, "batch queries"],
        num_keys: int,
        chunks: tuple[int, int] | None,
    ) -> Bool[Array, "batch keys queries"]:
        keys = jnp.arange(num_keys)[:, None]
        return (key_start[:, None] <= keys) & (keys < key_end[:, None])

    def inside(self, frames: Bool[Array, "batch frames"]) -> Bool[Array, "batch 1 1 frames"]:
        return frames[:, None, None]

    def to_sequence(self, x: Float[Array, "batch channels 1 frames"]) -> Float[Array, "batch frames channels"]:
        return jnp.squeeze(x, 2).swapaxes(1, 2)

    def from_sequence(self, x: Float[Array, "batch frames channels"]) -> Float[Array, "batch channels 1 frames"]:
        return x.swapaxes(1, 2)[:, :, None]

    def past_shapes(self, batch_size: int, left: int, inputs: int, num_heads: int, dim: int) -> Past:
        """Returns the shapes of a block's state, as `Sequence.past_shapes` does; the keys in it are transposed."""
        return Past((batch_size, left, 1, dim), (batch_size, dim, 1, left), (batch_size, dim, 1, inputs))

    def left_context(self, past: Past) -> int:
        return past.key.shape[1]

    def position_bias(
        self, relative_bias: Float[Array, "heads *positions"], num_queries: int, num_keys: int
    ) -> Float[Array, "heads keys queries"]:
        if relative_bias.ndim == 3:  # laid out
            return relative_bias
        return toeplitz(relative_bias, num_queries, num_keys).swapaxes(1, 2)

    # ------------------------------------------------------------------ verbs

    def image(self, features):
        return features.swapaxes(1, 2)[:, None]

    def stack(self, x, count):
        end = x.shape[3] // count * count
        return jnp.concatenate([x[..., first:end:count] for first in range(count)], axis=2)

    def convolve(self, x, kernel, bias, strides):
        return _convolve(x, kernel, "WHIO", strides) + bias[:, None, None]

    def filter(self, x, kernel, strides):
        return _convolve(x, jnp.asarray(kernel), "WHO", strides, groups=x.shape[1])

    def flatten(self, x):
        return x  # `linear` takes in all frequencies that are left

    def linear(self, module, x, scale: Scale = 1.0):
        return scaled(module.channels_first(x), scale, axis=1)

    def norm(self, module, x):
        return module(x, axis=1)

    def norm_of_sum(self, module, x, y):
        return self.norm(module, x + y)

    def subtract(self, x, value):
        return x - value[:, None, None]

    def extend(self, past, x):
        return jnp.concatenate([past, x], axis=3)

    def settled(self, x):
        return x[..., : x.shape[3] - self.look_ahead]

    def newest(self, x, count):
        end = x.shape[3] - self.look_ahead
        return x[..., end - count : end]

    def pad(self, x, before, after):
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))

    def depthwise(self, x, kernel, bias=None):
        y = _convolve(x, kernel, "WO", (1, 1), groups=x.shape[1])
        return y if bias is None else y + bias[:, None, None]

    def attend(self, module, projected, seen: Array, past, positions=None):
        """The products are bkhc,bchq->bkq and bchk,bkq->bchq: h, of size one, is summed with c and costs no reshape."""
        query, key, value = jnp.split(projected, 3, axis=1)
        frames, key = query.shape[3], key.transpose(0, 3, 2, 1)
        if past is not None:
            key = jnp.concatenate([past.key, key], axis=1)
            value = jnp.concatenate([past.value, value], axis=3)
        attended, bias = self._position_scores(module, query, key, positions)
        heads = (jnp.split(a, module.num_heads, axis) for a, axis in ((query, 1), (attended, 3), (value, 1)))
        outputs = []
        for own, q, k, v in zip(bias, *heads, strict=True):
            weights = module.softmax(jnp.einsum("bkhc,bchq->bkq", k, q) + own, seen, axis=1)
            outputs.append(jnp.einsum("bchk,bkq->bchq", v, weights))
        start, end = frames - self.look_ahead, key.shape[1] - self.look_ahead
        return jnp.concatenate(outputs, axis=1), key[:, start:end], value[..., start:end]

    def _position_scores(self, module, query, key, positions):
        """The keys, and for each head what is added to its scores (batch or none, keys, queries)."""
        if module.positions == "learned":
            return key, self.position_bias(module.relative_bias[...], query.shape[3], key.shape[1])
        own = module.position_bias[...].reshape(-1, 1, 1) * module.scale
        if module.positions == "absolute":
            places = self.linear(module.position, positions)
            added = (jnp.sum(part, axis=1).swapaxes(1, 2) for part in jnp.split(places * own, module.num_heads, axis=1))
            return key + places.transpose(0, 3, 2, 1), list(added)
        distances = module.distance_keys(query.shape[3], key.shape[1])
        queries = jnp.split(query + own, module.num_heads, axis=1)
        scores = (jnp.einsum("bchq,lc->bql", q, distances[:, head]) for head, q in enumerate(queries))
        return key, [relative_shift(of_head).swapaxes(1, 2) for of_head in scores]


def _convolve(
    x: Float[Array, "batch in height frames"],
    kernel: Float[Array, "..."],
    kernel_layout: str,
    strides: tuple[int, int],
    groups: int = 1,
) -> Float[Array, "batch out out_height out_frames"]:
    """A convolution without padding.

    The layout names the kernel's axes, of H (height), W (frames), I (in) and O (out); those it lacks are of one.
    Strides are of (frames, height).
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
