"""Core ML's own operations (MIL), in float16 and in the layout that its engine computes in.

A linear map is a 1x1 convolution, attention is done a head at a time as two products of the form nchw,nwhu->nchu, keys
are kept transposed. LayerNorm is stabilised with the pre-normaliser of docs/numerics.md: its sums could overflow.
Softmax is Core ML's, which shifts by the maximum.
"""

import functools
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder  # pyright: ignore[reportMissingImports]

from conformer.model.layouts.constant import weights
from conformer.model.layouts.layout import Layout, Past, Scale
from conformer.model.norm import LayerNorm

mb: Any = Builder  # its operations are registered when it is imported
LIMIT = 65504 / 4  # of the sum of squares in LayerNorm; the rest is headroom for rounding


class CoreMl(Layout):
    """(1, channels, 1, frames) after the front end, (1, channels, frequency, time) in it: variables of MIL.

    The state is that of one block: keys (1, left, 1, channels), values (1, channels, 1, left), inputs
    (1, channels, 1, past). The model must be laid out (`lay_out`).
    """

    name = "coreml"

    def standardise(self, features, mean, scale):
        mean, scale = (np.asarray(a)[None, None, :, None] for a in (mean, scale))
        return mb.cast(x=mb.mul(x=mb.sub(x=features, y=mean), y=scale), dtype="fp16")

    def heard(self, features):
        return mb.cast(x=mb.sign(x=mb.reduce_max(x=mb.abs(x=features), axes=[2], keep_dims=True)), dtype="fp16")

    def weigh(self, x, heard):
        return mb.mul(x=x, y=heard)

    def at_most_one(self, x):
        return mb.minimum(x=x, y=np.float16(1))

    def pad_frequency(self, x, before, after):
        return mb.pad(x=x, pad=[0, 0, 0, 0, before, after, 0, 0], mode="constant", constant_val=np.float16(0))

    def image(self, features):
        return features

    def stack(self, x, count):
        end = x.shape[3] // count * count
        parts = [
            mb.slice_by_index(x=x, begin=[0, 0, 0, first], end=[*x.shape[:3], end], stride=[1, 1, 1, count])
            for first in range(count)
        ]
        return mb.concat(values=parts, axis=2)

    def convolve(self, x, kernel, bias, strides):
        return _convolve(x, np.asarray(kernel).transpose(3, 2, 1, 0), np.asarray(bias), strides[::-1])

    def filter(self, x, kernel, strides):
        weight = np.asarray(kernel).transpose(2, 1, 0)[:, None]
        return _convolve(x, weight, None, strides[::-1], groups=kernel.shape[2])

    def flatten(self, x):
        return x  # `linear` takes in all frequencies that are left

    def relu(self, x):
        return mb.relu(x=x)

    def swish(self, x):
        return mb.silu(x=x)

    def gate(self, x):
        value, gate = mb.split(x=x, num_splits=2, axis=1)
        return mb.mul(x=value, y=mb.sigmoid(x=gate))

    def subtract(self, x, value):
        return mb.sub(x=x, y=np.asarray(value).astype(np.float16)[None, :, None, None])

    def add(self, x, y):
        return mb.add(x=x, y=y)

    def linear(self, module, x, scale: Scale = 1.0):
        weight, bias = weights(module, scale)
        weight = weight.reshape(-1, x.shape[1], weight.shape[1]).transpose(2, 1, 0)
        return _convolve(x, weight[..., None], bias)

    def norm(self, module, x):
        """c / s / sqrt(mean(c^2 / s^2) + eps / s^2) scale + bias, c = x - mean, s = sqrt(sum|c| max|c| / LIMIT).

        s as in Theorem 3 of docs/numerics.md. x is divided by a power of two before its mean is taken, and c by max|c|
        before anything is summed, so that nothing on the way overflows.
        """
        if not isinstance(module, LayerNorm):
            self.lacks(module)
        peak = mb.maximum(x=_reduce("max", mb.abs(x=x)), y=np.float16(1))
        power = mb.exp2(x=mb.floor(x=mb.mul(x=mb.log(x=peak), y=np.float16(1 / np.log(2)))))
        x = mb.real_div(x=x, y=power)
        centred = mb.sub(x=x, y=_reduce("mean", x))
        largest = mb.maximum(x=_reduce("max", mb.abs(x=centred)), y=np.float16(2**-14))
        unit = mb.real_div(x=centred, y=largest)
        total = mb.maximum(x=_reduce("sum", mb.abs(x=unit)), y=np.float16(1))
        root = mb.sqrt(x=mb.mul(x=total, y=np.float16(1 / LIMIT)))  # s / max|c|
        scaled = mb.real_div(x=unit, y=root)
        # sqrt(eps) / s, of x as it came.
        eps = mb.real_div(x=np.float16(np.sqrt(module.eps)), y=mb.mul(x=mb.mul(x=largest, y=root), y=power))
        variance = mb.add(x=_reduce("mean", mb.mul(x=scaled, y=scaled)), y=mb.mul(x=eps, y=eps))
        scale, bias = (np.asarray(a[...]).astype(np.float16)[None, :, None, None] for a in (module.scale, module.bias))
        return mb.add(x=mb.mul(x=mb.real_div(x=scaled, y=mb.sqrt(x=variance)), y=scale), y=bias)

    def extend(self, past, x):
        return mb.concat(values=[past, x], axis=3)

    def settled(self, x):
        return self.newest(x, x.shape[3] - self.look_ahead)

    def newest(self, x, count):
        return _part(x, 3, x.shape[3] - self.look_ahead - count, count)

    def depthwise(self, x, kernel, bias=None):
        weight = np.asarray(kernel).T[:, None, None]
        return _convolve(x, weight, None if bias is None else np.asarray(bias), groups=x.shape[1])

    def attend(self, module, projected, seen, past: Past, positions=None):
        query, key, value = mb.split(x=projected, num_splits=3, axis=1)
        frames = projected.shape[3]
        key = mb.concat(values=[past.key, mb.transpose(x=key, perm=[0, 3, 2, 1])], axis=1)
        value = mb.concat(values=[past.value, value], axis=3)
        attended, bias = self._position_scores(module, query, key, positions)
        split = functools.partial(mb.split, num_splits=module.num_heads)
        parts = split(x=query, axis=1), split(x=attended, axis=3), split(x=value, axis=1)
        outputs = []
        for own, q, k, v in zip(bias, *parts, strict=True):
            scores = mb.einsum(values=(k, q), equation="nchw,nwhu->nchu")
            scores = mb.add(x=scores, y=mb.add(x=own, y=seen))
            outputs.append(mb.einsum(values=(v, mb.softmax(x=scores, axis=1)), equation="nchw,nwhu->nchu"))
        start, left = frames - self.look_ahead, past.key.shape[1]
        return mb.concat(values=outputs, axis=1), _part(key, 1, start, left), _part(value, 3, start, left)

    def _position_scores(self, module, query, key, positions):
        """The keys, and for each head what is added to its scores: (1, keys, 1, queries or 1)."""
        if module.positions == "learned":
            return key, np.asarray(module.relative_bias[...]).transpose(0, 2, 1).astype(np.float16)[:, None, :, None]
        own = (np.asarray(module.position_bias[...]) * module.scale).astype(np.float16)  # (heads, head_dim)
        split = functools.partial(mb.split, num_splits=module.num_heads)
        if module.positions == "absolute":
            places = mb.transpose(x=self.linear(module.position, positions), perm=[0, 3, 2, 1])
            parts = zip(split(x=places, axis=3), own, strict=True)
            added = [mb.einsum(values=(p, b[None, :, None, None]), equation="nchw,nwhu->nchu") for p, b in parts]
            return mb.add(x=key, y=places), added
        frames, num_keys = query.shape[3], key.shape[1]
        shifted = mb.add(x=query, y=own.reshape(1, -1, 1, 1))
        queries = split(x=mb.transpose(x=shifted, perm=[0, 3, 2, 1]), axis=3)
        distances = np.asarray(module.distances[...]).transpose(1, 2, 0).astype(np.float16)[:, None, :, None]
        scores = []
        for q, d in zip(queries, distances, strict=True):
            of_head = mb.einsum(values=(q, d), equation="nchw,nwhu->nchu")  # (1, queries, 1, distances)
            scores.append(mb.transpose(x=_relative_shift(of_head, frames, num_keys), perm=[0, 3, 2, 1]))
        return key, scores


def _relative_shift(scores: Any, num_queries: int, num_keys: int) -> Any:
    """Shifts scores (1, queries, 1, distances) as `kernels.chunked_attention.relative_shift` does."""
    if num_queries == 1:
        return scores
    distances = scores.shape[3]
    flat = mb.reshape(x=scores, shape=[1, 1, 1, num_queries * distances])
    rows = _part(flat, 3, num_queries - 1, num_queries * (distances - 1))
    rows = mb.reshape(x=rows, shape=[1, num_queries, 1, distances - 1])
    return mb.slice_by_size(x=rows, begin=[0, 0, 0, 0], size=[1, num_queries, 1, num_keys])


def _convolve(
    x: Any, weight: np.ndarray, bias: np.ndarray | None, strides: tuple[int, ...] = (1, 1), groups: int = 1
) -> Any:
    options = {} if bias is None else {"bias": bias.astype(np.float16)}
    return mb.conv(
        x=x, weight=weight.astype(np.float16), strides=list(strides), pad_type="valid", groups=groups, **options
    )


def _reduce(kind: str, x: Any) -> Any:
    """Reduces x over its channels."""
    return getattr(mb, f"reduce_{kind}")(x=x, axes=[1], keep_dims=True)


def _part(x: Any, axis: int, start: int, count: int) -> Any:
    begin, size = [0] * 4, list(x.shape)
    begin[axis], size[axis] = start, count
    return mb.slice_by_size(x=x, begin=begin, size=size)
