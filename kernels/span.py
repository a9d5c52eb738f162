"""What a block of rows adds up: its own columns, and those of the blocks that hold the rest of the same rows."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from kernels.typing import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class Span:
    """Args:
    width: columns of a row.
    inside: which columns of the block are a row's own; None for all. The others only fill it up, with zeros.
    combined: what was found in the blocks that share rows, together, by an operation of two.
    """

    width: int
    inside: Bool[Array, "rows columns"] | None = None
    combined: Callable[[Array, Callable[[Array, Array], Array]], Array] = lambda found, operation: found

    def total(self, x: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
        """The sum of each row."""
        return self.combined(jnp.sum(x, axis=1), jnp.add)

    def largest(self, x: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
        """The largest element of each row."""
        return self.combined(jnp.max(x, axis=1), jnp.maximum)

    def mean(self, x: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
        return self.total(x) / self.width

    def own(self, x: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        """Zero where a column only fills the block up."""
        return x if self.inside is None else jnp.where(self.inside, x, 0.0)
