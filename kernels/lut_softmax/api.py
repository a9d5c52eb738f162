"""The public functions; they pick the implementation."""

import jax
import jax.numpy as jnp

from kernels.lut_softmax import lut, reference
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.typing import Array, Bool, Float


def softmax(
    scores: Float[Array, "*shape"],
    mask: Bool[Array, "*#shape"],
    *,
    tables: SoftmaxTables | None = None,
    axis: int = -1,
) -> Float[Array, "*shape"]:
    """Softmax over the keys where `mask` is true.

        p_j = mask_j exp(s_j) / sum_k mask_k exp(s_k)

    A masked key gets exactly zero, and so does every key of a row that is masked as a whole (never NaN).

    Args:
        scores: attention scores.
        mask: true where a key may be attended; broadcast against scores.
        tables: exponential and reciprocal from tables, the arithmetic between them that of scores; for inference, there
            is no gradient. `kernels.emulator.emulate` runs it in the arithmetic of a device.
        axis: of the keys.
    """
    if tables is None:
        return reference.softmax(scores, mask, axis)
    if axis != -1:
        rows = lut.softmax(jnp.moveaxis(scores, axis, -1), jnp.moveaxis(mask, axis, -1), tables)
        return jnp.moveaxis(rows, -1, axis)
    return lut.softmax(scores, mask, tables)


def log_softmax(
    scores: Float[Array, "*batch symbols"], *, tables: SoftmaxTables | None = None
) -> Float[Array, "*batch symbols"]:
    """log p_j = s_j - log(sum_k exp(s_k)) over the last axis; never -inf for a finite score.

    Args:
        tables: exponential and logarithm from tables (see `softmax`).
    """
    return jax.nn.log_softmax(scores) if tables is None else lut.log_softmax(scores, tables)
