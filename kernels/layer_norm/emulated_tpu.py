"""The emulated normalisation of `faithful` in one pass on a TPU: the same operations in the same order, bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.emulator import Arithmetic
from kernels.implementation import Unsupported
from kernels.layer_norm.faithful import NormNumerics, normalise
from kernels.layer_norm.mosaic_tpu import heuristic
from kernels.tpu_rows import Blocks
from kernels.typing import Array, Float

LANES = 128


class LaneArithmetic(Arithmetic):
    """Sums along the lanes of a register, where halves meet by rotation: the order of `Arithmetic.sum`."""

    def round(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Of a vector: the device rounds no scalar."""
        return super().round(jnp.reshape(x, (1, 1)) if jnp.ndim(x) == 0 else x)

    def sum(self, x: Float[Array, "rows channels"], axis: int = -1, *, keepdims: bool = False) -> Array:
        """Of the last axis, which is kept."""
        assert axis == -1 and keepdims, "what a normalisation sums"
        width, partial = x.shape[1], self.accumulation or self.format
        block = min(self.block or width, width)
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) % block
        x, count = partial.round(x), block
        while count > 1:  # the sum of each block ends in its first lane
            half = (count + 1) // 2
            x = jnp.where(lane < count - half, partial.round(x + pltpu.roll(x, width - half, 1)), x)
            count = half
        total = x[:, :1]
        for first in range(block, width, block):
            total = partial.round(total + x[:, first : first + 1])
        return self.round(total)


def emulated(
    x: Float[Array, "*batch channels"], eps: float, numerics: NormNumerics, *, centred: bool
) -> Float[Array, "*batch channels"]:
    """See `faithful.normalise`; float32 arrays of values of the format, as there.

    Raises:
        Unsupported: channels that do not fill whole registers, or blocks that do not divide them.
    """
    width, arithmetic = x.shape[-1], numerics.arithmetic
    if width % LANES or (arithmetic.block and width % min(arithmetic.block, width)):
        raise Unsupported(
            f"layer_norm: numerics with x of {width} channels, block={arithmetic.block}: implementation='mosaic_tpu' "
            f"takes multiples of {LANES} that the block divides; use implementation='xla'"
        )
    fields = {field.name: getattr(arithmetic, field.name) for field in dataclasses.fields(arithmetic)}
    numerics = dataclasses.replace(numerics, arithmetic=LaneArithmetic(**fields))
    flat = arithmetic.round(x).reshape(-1, width)
    rows = Blocks(heuristic(width).rows // 4).fitted(len(flat))

    def body(x_ref, y_ref):
        y_ref[...] = normalise(x_ref[...], eps, numerics, centred=centred)

    spec = pl.BlockSpec((rows, width), lambda index: (index, 0))
    y = pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(flat.shape, jnp.float32),
        grid=(pl.cdiv(len(flat), rows),),
        in_specs=[spec],
        out_specs=spec,
    )(flat)
    return y.reshape(x.shape)
