"""The public functions; they pick the implementation."""

import jax
import jax.numpy as jnp

from kernels import formats
from kernels.implementation import Unsupported, deferred, dispatch
from kernels.lut_softmax import lut, reference
from kernels.lut_softmax.lut import SoftmaxTables
from kernels.typing import Array, Bool, Float, Int


def _plain(scores: Array, mask: Array | None, tables: SoftmaxTables | None, axis: int = -1) -> Array:
    mask = jnp.ones((1,) * scores.ndim, bool) if mask is None else mask
    return reference.softmax(scores, mask, axis) if tables is None else tables(scores, mask, axis)


IMPLEMENTATIONS = {
    "reference": _plain,
    "xla": _plain,  # which XLA fuses
    "mosaic_gpu": deferred("kernels.lut_softmax.mosaic_gpu", "softmax"),
    "mosaic_tpu": deferred("kernels.lut_softmax.mosaic_tpu", "softmax"),
}


def softmax(
    scores: Float[Array, "*shape"],
    mask: Bool[Array, "*#shape"] | Int[Array, "*#shape"] | None = None,
    *,
    tables: SoftmaxTables | None = None,
    axis: int = -1,
    implementation: str | None = None,
) -> Float[Array, "*shape"]:
    """Softmax over the keys where `mask` is true.

        p_j = mask_j exp(s_j) / sum_k mask_k exp(s_k)

    A masked key gets exactly zero, and so does every key of a row that is masked as a whole (never NaN).

    Args:
        scores: attention scores in float32, bfloat16 or float16, as is the result; computed in float32, unless with
            tables and by "reference" or "xla", in their own format.
        mask: true, or not zero, where a key may be attended; broadcast against scores. None is true.
        tables: exponential and reciprocal from tables, the arithmetic between them that of scores; for inference, there
            is no gradient. `kernels.emulator.emulate` runs it in the arithmetic of a device.
        axis: of the keys: the last, or another for "reference" and "xla".
        implementation: "reference", "xla", "mosaic_gpu", "mosaic_tpu", or None for what was measured to be the fastest
            on this device (`kernels.implementation`).

    Raises:
        ValueError: a format or a mask that does not fit.
        Unsupported: the named implementation cannot run on this device or with these arguments.
    """
    formats.check("lut_softmax", "scores", scores, formats.COMPUTED)
    axis = -1 if axis == scores.ndim - 1 else axis
    if mask is not None and mask.dtype != jnp.bool_:
        mask = mask != 0
    if axis != -1 and implementation not in (None, "reference", "xla"):
        raise Unsupported(f"lut_softmax: axis={axis} is not the last, which kernels need: use implementation='xla'")
    if scores.size == 0:
        return scores
    if axis != -1:
        return _plain(scores, mask, tables, axis)
    return dispatch("lut_softmax", IMPLEMENTATIONS, implementation, scores, mask, tables)


def log_softmax(
    scores: Float[Array, "*batch symbols"], *, tables: SoftmaxTables | None = None
) -> Float[Array, "*batch symbols"]:
    """log p_j = s_j - log(sum_k exp(s_k)) over the last axis; never -inf for a finite score.

    Args:
        tables: exponential and logarithm from tables (see `softmax`).
    """
    return jax.nn.log_softmax(scores) if tables is None else lut.log_softmax(scores, tables)
