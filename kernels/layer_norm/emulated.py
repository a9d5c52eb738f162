"""What the emulated normalisations of a TPU and of a GPU share: sums along the lanes, in the emulator's order."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from kernels.emulator import Arithmetic
from kernels.implementation import Unsupported
from kernels.layer_norm.faithful import NormNumerics
from kernels.typing import Array, Float, Int


class LaneArithmetic(Arithmetic):
    """`Arithmetic` of a block of rows whose columns lie side by side: halves meet by a shift of all columns."""

    def sum(self, x: Float[Array, "rows channels"], axis: int = -1, *, keepdims: bool = False) -> Array:
        """Of the last axis, which is kept."""
        assert axis == -1 and keepdims, "what a normalisation sums"
        width, partial = x.shape[1], dataclasses.replace(self, format=self.accumulation or self.format)
        block = min(self.block or width, width)
        lane = self.columns(x) % block
        x, count = partial.round(x), block
        while count > 1:  # the sum of each block ends in its first column
            half = (count + 1) // 2
            x = jnp.where(lane < count - half, partial.add(x, self.shifted(x, half)), x)
            count = half
        total = self.column(x, 0)
        for first in range(block, width, block):
            total = partial.add(total, self.column(x, first))
        return self.round(total)

    def columns(self, x: Float[Array, "rows channels"]) -> Int[Array, "rows channels"]:
        """The number of each element's column."""
        raise NotImplementedError

    def shifted(self, x: Float[Array, "rows channels"], amount: int) -> Float[Array, "rows channels"]:
        """The element so many columns further; from the last column on from the first."""
        raise NotImplementedError

    def column(self, x: Float[Array, "rows channels"], index: int) -> Float[Array, "rows #channels"]:
        """One column, of one element a row or as many as x has."""
        raise NotImplementedError


def in_lanes(device: Callable[..., LaneArithmetic], numerics: NormNumerics) -> NormNumerics:
    """The same numerics in the arithmetic of a device."""
    fields = {field.name: getattr(numerics.arithmetic, field.name) for field in dataclasses.fields(Arithmetic)}
    return dataclasses.replace(numerics, arithmetic=device(**fields))


def check(x: Float[Array, "*batch channels"], arithmetic: Arithmetic, implementation: str, multiple: int) -> None:
    """Raises Unsupported for channels that are no `multiple`, or that the blocks of a sum do not divide."""
    width, block = x.shape[-1], arithmetic.block
    if width % multiple or (block and width % min(block, width)):
        raise Unsupported(
            f"layer_norm: numerics with x of {width} channels, block={block}: implementation={implementation!r} takes "
            f"multiples of {multiple} that the block divides; use implementation='xla'"
        )
