"""Softmax from tables, for formats whose exp overflows beyond 11."""

import dataclasses
import math

import jax.numpy as jnp

from kernels.lut_softmax.table import BoundedExp, Exp, Logarithm, Reciprocal
from kernels.typing import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class SoftmaxTables:
    """The tables of a softmax and when its rows are rescaled; called, it is that softmax.

    Softmax is invariant to a shift of its scores. A row is shifted by its maximum only where that lies outside
    `window`: above, the sum of exponentials could overflow; below, they could vanish (an accelerator skips the
    subtraction elsewhere). Both ends matter: a table clips at both.

    Error of a probability p, from the error laws of `Table`, with relative errors a of exp and b of the reciprocal:
    2 a p (1 - p) + b p, at most a/2 + b; and K exp(low - window[0]) for what K keys lose below the domain of exp.

    Args:
        window: scores between which a maximum is left where it is.
        largest: largest value of the format, which bounds the sum: 65504 in float16.
    """

    exp: Exp | BoundedExp = dataclasses.field(default_factory=Exp)
    reciprocal: Reciprocal = dataclasses.field(default_factory=Reciprocal)
    logarithm: Logarithm = dataclasses.field(default_factory=Logarithm)
    window: tuple[float, float] = (0.0, 3.9375)
    largest: float = 65504.0

    @property
    def entries(self) -> int:
        """Entries of all tables together."""
        return self.exp.entries + self.reciprocal.entries + self.logarithm.entries

    def safe_window(self, num_keys: int) -> tuple[float, float]:
        """`window`, lowered for so many keys that their sum could exceed largest / 4."""
        return self.window[0], min(self.window[1], math.log(self.largest / 4 / num_keys))

    def headroom(self, num_keys: int) -> int:
        """H: exponentials of a shifted row, at most 1, can be 2^H times as large without their sum overflowing.

        Then what is lost below the smallest normal number, where subnormals are flushed, is 2^H times smaller.
        """
        return max(0, math.floor(math.log2(self.largest / 4 / num_keys)))

    def __call__(
        self, scores: Float[Array, "*shape"], mask: Bool[Array, "*#shape"], axis: int = -1
    ) -> Float[Array, "*shape"]:
        """`api.softmax` with these tables, in plain JAX."""
        rows = softmax(jnp.moveaxis(scores, axis, -1), jnp.moveaxis(mask, axis, -1), self)
        return jnp.moveaxis(rows, -1, axis).astype(scores.dtype)


def softmax(
    scores: Float[Array, "*batch keys"], mask: Bool[Array, "*#batch keys"], tables: SoftmaxTables
) -> Float[Array, "*batch keys"]:
    """See `api.softmax`."""
    masked = jnp.where(mask, scores, -jnp.inf)
    largest = jnp.max(masked, axis=-1, keepdims=True)
    low, high = tables.safe_window(scores.shape[-1])
    rescaled = ((largest < low) | (largest > high)) & (largest > -jnp.inf)
    shifted = jnp.where(mask, scores - jnp.where(rescaled, largest, 0.0), 0.0)
    exponentials = tables.exp(shifted, jnp.where(rescaled, tables.headroom(scores.shape[-1]), 0))
    exponentials = jnp.where(mask, exponentials, 0.0)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return tables.reciprocal.times(exponentials, jnp.where(total == 0.0, 1.0, total))


def log_softmax(scores: Float[Array, "*batch symbols"], tables: SoftmaxTables) -> Float[Array, "*batch symbols"]:
    """log p_j = (s_j - max) - log(sum_k exp(s_k - max)): finite for every symbol with a finite score.

    log(softmax(s)) would be -inf from a difference of 17 on in float16, where exp underflows.
    """
    largest = jnp.max(scores, axis=-1, keepdims=True)
    shifted = jnp.maximum(scores - largest, -tables.largest)
    return shifted - tables.logarithm(jnp.sum(tables.exp(shifted), axis=-1, keepdims=True))
