"""The emulated normalisation of `faithful` in one pass on a TPU: the same operations in the same order, bit for bit."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.layer_norm.emulated import LaneArithmetic, check, in_lanes
from kernels.layer_norm.faithful import NormNumerics, normalise
from kernels.layer_norm.mosaic_tpu import heuristic
from kernels.tpu_rows import Blocks
from kernels.typing import Array, Float, Int

LANES = 128


class RotatedLanes(LaneArithmetic):
    """A shift is a rotation of the lanes."""

    def round(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Of a vector: the device rounds no scalar."""
        return super().round(jnp.reshape(x, (1, 1)) if jnp.ndim(x) == 0 else x)

    def columns(self, x: Float[Array, "rows channels"]) -> Int[Array, "rows channels"]:
        return jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)

    def shifted(self, x: Float[Array, "rows channels"], amount: int) -> Float[Array, "rows channels"]:
        return pltpu.roll(x, x.shape[1] - amount, 1)

    def column(self, x: Float[Array, "rows channels"], index: int) -> Float[Array, "rows 1"]:
        return x[:, index : index + 1]


def emulated(
    x: Float[Array, "*batch channels"], eps: float, numerics: NormNumerics, *, centred: bool
) -> Float[Array, "*batch channels"]:
    """See `faithful.normalise`; float32 arrays of values of the format, as there.

    Raises:
        Unsupported: channels that do not fill whole registers, or blocks that do not divide them.
    """
    width, arithmetic = x.shape[-1], numerics.arithmetic
    check(x, arithmetic, "mosaic_tpu", LANES)
    numerics = in_lanes(RotatedLanes, numerics)
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
