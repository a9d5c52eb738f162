"""The softmax from tables, block of keys after block: what the kernels of chunked attention do with `SoftmaxTables`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from kernels.implementation import Unsupported
from kernels.lut_softmax import SoftmaxTables
from kernels.lut_softmax import softmax as exact_softmax
from kernels.lut_softmax.table import Lookup
from kernels.typing import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class OnlineSoftmax:
    """Of rows whose keys come in blocks, with m the running maximum of a row and exp, 1/x from the tables.

        w_j = exp(s_j - shift(m)) 2^H(m),    sum <- sum d + sum_j w_j,    out <- out d + sum_j w_j v_j,
        d = exp(shift(m') - shift(m)) 2^(H(m) - H(m')),    m' before the block, m with it; at the end out (1 / sum)

    As in `lut.softmax`, shift(m) = m and H = `SoftmaxTables.headroom` where m lies outside `safe_window`, on either
    side, and both are zero within. The table's exp(0) is 1 exactly: rows whose maximum stays in the window are never
    rescaled, and their weights are those of `lut.softmax`, up to the order of summation and the format in which weights
    meet the values. Elsewhere each of the c blocks that changes the shift costs a factor of 1 + a, a the relative error
    of exp: a probability errs by 2 (c + 1) a p (1 - p) + b p at most, b the error of the reciprocal, c less than the
    number of blocks of keys. What lies below the domain of exp is lost as there. Products and sums are in float32.

    Args:
        num_keys: on which window and headroom depend; all of a row's, seen or not.
    """

    tables: SoftmaxTables
    num_keys: int

    def weigh(
        self,
        scores: Float[Array, "rows columns"],
        seen: Bool[Array, "rows columns"],
        before: Float[Array, "..."],
        maximum: Float[Array, "..."],
        across: Callable[[Array], Array],
        exp: Lookup,
        row_exp: Lookup,
    ) -> tuple[Float[Array, "rows columns"], Float[Array, "..."]]:
        """The weights of a block of scores, zero where not `seen`, and the factor d of each query.

        Args:
            before, maximum: of each query, without this block and with it; far below all scores where none was seen.
            across: lays what there is one of for each query over the scores.
            exp, row_exp: entries of the table of `tables.exp`, for each score and for each query.
        """
        (old_shift, old_headroom), (shift, headroom) = self._shift(before), self._shift(maximum)
        weights = self.tables.exp(jnp.where(seen, scores - across(shift), 0.0), across(headroom), exp)
        decay = self.tables.exp(old_shift - shift, headroom - old_headroom, row_exp)
        return jnp.where(seen, weights, 0.0), decay

    def inverse(self, total: Float[Array, "..."], row_reciprocal: Lookup) -> tuple[Array, Array]:
        """1 / total, one where that is zero, as two factors."""
        return self.tables.reciprocal.factors(jnp.where(total == 0.0, 1.0, total), row_reciprocal)

    def _shift(self, maximum: Array) -> tuple[Array, Array]:
        low, high = self.tables.safe_window(self.num_keys)
        outside = (maximum < low) | (maximum > high)
        return jnp.where(outside, maximum, 0.0), jnp.where(outside, self.tables.headroom(self.num_keys), 0)


def online_softmax(softmax: Callable[[Array, Array], Array], num_keys: int, format: Any) -> OnlineSoftmax | None:
    """None for the exact one. Raises Unsupported for a function that is no `SoftmaxTables`."""
    if softmax is exact_softmax:
        return None
    if not isinstance(softmax, SoftmaxTables):
        raise Unsupported(
            f"chunked_attention: softmax={softmax!r} is neither the exact one nor SoftmaxTables: use "
            "implementation='xla'"
        )
    if softmax.largest > (largest := float(jnp.finfo(format).max)):
        raise Unsupported(
            f"chunked_attention: softmax lets weights grow to {softmax.largest:g}, and {format} ends at {largest:g}: "
            f"give SoftmaxTables(largest={largest:g}), or use implementation='xla'"
        )
    return OnlineSoftmax(softmax, num_keys)
