"""The normalisation and the attention that a policy puts in place of a model's own."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from conformer.model.norm import LayerNorm
from kernels.emulator.emulate import exactly
from kernels.layer_norm import NormNumerics, layer_norm, rms_norm
from kernels.typing import Array, Bool, Float

Softmax = Callable[[Array, Array], Array]  # of scores and a mask


class Norm(nnx.Module):
    """LayerNorm, or RMSNorm over the last axis, in a device's arithmetic.

    Args:
        source: the layer whose parameters it takes over.
    """

    def __init__(self, source: LayerNorm | nnx.LayerNorm | nnx.RMSNorm, numerics: NormNumerics):
        if isinstance(source, LayerNorm):
            self.eps = source.eps
        else:
            if (source.feature_axes, source.reduction_axes) != (-1, -1):
                raise ValueError(
                    f"{type(source).__name__} over the axes {source.reduction_axes}: a policy can only change one over "
                    "the last axis"
                )
            self.eps = source.epsilon
        self.scale = source.scale
        self.bias = nnx.data(None) if isinstance(source, nnx.RMSNorm) else source.bias
        self.centred = not isinstance(source, nnx.RMSNorm)
        self.numerics = numerics

    def __call__(self, x: Float[Array, "*shape"], *, axis: int = -1) -> Float[Array, "*shape"]:
        scale = jnp.ones(x.shape[axis]) if self.scale is None else self.scale[...]
        bias = jnp.zeros(x.shape[axis]) if self.bias is None else self.bias[...]
        if self.centred:
            return exactly(lambda *a: layer_norm(*a, eps=self.eps, numerics=self.numerics, axis=axis))(x, scale, bias)
        return exactly(lambda *a: rms_norm(*a, eps=self.eps, numerics=self.numerics))(x, scale)

    def of_sum(
        self, x: Float[Array, "*batch channels"], residual: Float[Array, "*batch channels"]
    ) -> Float[Array, "*batch channels"]:
        return self(x + residual)


def raw_softmax(
    scores: Float[Array, "*shape"], mask: Bool[Array, "*#shape"], *, axis: int = -1
) -> Float[Array, "*shape"]:
    """exp(s_j) / sum_k exp(s_k) as it stands: exp and the sum overflow a narrow format."""
    weights = jnp.where(mask, jnp.exp(scores), 0.0)
    total = jnp.sum(weights, axis=axis, keepdims=True)
    return weights / jnp.where(total == 0.0, 1.0, total)


def attention(
    query: Float[Array, "*batch queries heads head_dim"],
    key: Float[Array, "*batch keys key_heads head_dim"],
    value: Float[Array, "*batch keys key_heads head_dim"],
    mask: Array | None = None,
    *,
    softmax: Softmax,
    rope: nnx.RoPE | None = None,
    input_positions: Array | None = None,
    is_causal: bool = False,
    **_: Any,
) -> Float[Array, "*batch queries heads head_dim"]:
    """An `attention_fn` of nnx.MultiHeadAttention with a softmax of one's own; without dropout.

    The query is scaled before the product with the key, which could overflow a narrow format otherwise.
    """
    if rope is not None:
        query, key = (_rotate(rope, a, input_positions) for a in (query, key))
    key, value = (jnp.repeat(a, query.shape[-2] // a.shape[-2], axis=-2) for a in (key, value))
    scores = jnp.einsum("...qhd,...khd->...hqk", query * query.shape[-1] ** -0.5, key)
    seen = jnp.ones(scores.shape[-2:], bool) if mask is None else mask.astype(bool)
    if is_causal:
        seen = seen & jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("...hqk,...khd->...qhd", softmax(scores, seen), value)


def _rotate(rope: nnx.RoPE, x: Array, positions: Array | None) -> Array:
    return jnp.moveaxis(rope(jnp.moveaxis(x, -2, -3), None if positions is None else positions[..., None, :]), -3, -2)
