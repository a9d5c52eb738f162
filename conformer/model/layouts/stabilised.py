"""The exporters' layout for hardware that rounds every operation to float16: norms and softmax do not overflow.

LayerNorm has safe statistics and the pre-normaliser of docs/numerics.md, the formula that the emulator runs. Softmax
subtracts the largest score. Both are written out in elementary operations, since runtimes define their own LayerNorm
and softmax differently.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from conformer.model.layouts.constant import Constant
from conformer.model.norm import LayerNorm
from kernels.emulator import Arithmetic, Format
from kernels.layer_norm.faithful import NormNumerics, standardise
from kernels.typing import Array, Float

# All powers of two that float16 holds as normal numbers: where hardware flushes subnormals, too.
_POWERS = np.exp2(np.arange(-14, 16)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Written(Arithmetic):
    """Operations left to the hardware that a graph is for, which rounds them; limits are those of the format."""

    def round(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x

    def sum(self, x: Float[Array, "..."], axis: int = -1, *, keepdims: bool = False) -> Float[Array, "..."]:
        return jnp.sum(x, axis, keepdims=keepdims)

    def power_of_two_below(self, x: Float[Array, "*rows 1"]) -> Float[Array, "*rows 1"]:
        """Compares with the powers of two that float16 holds: exact in any arithmetic, and graphs cannot read bits."""
        return jnp.max(jnp.where(x >= _POWERS, _POWERS, _POWERS[0]), axis=-1, keepdims=True)


NUMERICS = NormNumerics(Written(Format("float16", flush_to_zero=True)))


class Stabilised(Constant):
    """The layout `Constant` in numbers that float16 holds at every step, for rows of up to 4096 channels.

    Linear maps stay as they are: their sums are as large as training made them. A residual stream beyond float16 is
    brought into it by `conformer.numerics.scale_stream`.
    """

    name = "stabilised"

    def norm(self, module, x):
        if not isinstance(module, LayerNorm):
            self.lacks(module)
        rows = standardise(x, module.eps, NUMERICS, centred=True)
        return rows * np.asarray(module.scale[...]) + np.asarray(module.bias[...])

    def softmax(self, scores: Any) -> Any:
        """Shifted at every row: a graph has no branch to save the subtraction by."""
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        return weights / jnp.sum(weights, axis=-1, keepdims=True)

    def log_softmax(self, logits: Any) -> Any:
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
