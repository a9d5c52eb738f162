"""The emulated normalisation of `faithful` in one pass on a GPU: the same operations in the same order.

A row lies in the registers of a warp (`kernels.gpu_rows`), element after element over its lanes, so that a shift by any
number of columns is an exchange between lanes. What there is one of for each row is held for each of its elements; the
compiler computes it once.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import gpu_rows
from kernels.device import is_interpreted
from kernels.emulator import Format
from kernels.gpu_rows import Blocks, at_least, load
from kernels.layer_norm.emulated import LaneArithmetic, check, in_lanes
from kernels.layer_norm.faithful import NormNumerics, normalise
from kernels.layer_norm.mosaic_gpu import heuristic
from kernels.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExchangedLanes(LaneArithmetic):
    """Args:
    blocks: how rows are spread over lanes, one element a lane at a time.
    width: elements of a row.
    """

    blocks: Blocks
    width: int

    def round(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Of a block: the device has no bits of a scalar."""
        return _rounded(self._block(x), self.format)

    def max(self, x: Float[Array, "rows channels"]) -> Float[Array, "rows channels"]:
        return lax.broadcast_in_dim(jnp.max(x, axis=1), x.shape, (0,))

    def quotient(self, a: Float[Array, "..."] | float, b: Float[Array, "..."]) -> Float[Array, "rows channels"]:
        return _correctly_rounded("div.rn.f32", self._block(a), self._block(b), layout=self.blocks.layout)

    def root(self, a: Float[Array, "..."]) -> Float[Array, "rows channels"]:
        return _correctly_rounded("sqrt.rn.f32", self._block(a), layout=self.blocks.layout)

    def _block(self, x: Float[Array, "..."] | float) -> Float[Array, "rows channels"]:
        block = jnp.broadcast_to(jnp.asarray(x, jnp.float32), (self.blocks.rows, self.width))
        return plgpu.layout_cast(block, self.blocks.layout)

    def columns(self, x: Float[Array, "rows channels"]) -> Int[Array, "rows channels"]:
        return plgpu.broadcasted_iota(jnp.int32, x.shape, 1, layout=self.blocks.layout)

    def shifted(self, x: Float[Array, "rows channels"], amount: int) -> Float[Array, "rows channels"]:
        return _moved(x, self.blocks, amount, same=False)

    def column(self, x: Float[Array, "rows channels"], index: int) -> Float[Array, "rows channels"]:
        return _moved(x, self.blocks, index, same=True)


def emulated(
    x: Float[Array, "*batch channels"], eps: float, numerics: NormNumerics, *, centred: bool
) -> Float[Array, "*batch channels"]:
    """See `faithful.normalise`; float32 arrays of values of the format, as there.

    Raises:
        Unsupported: channels that cannot be spread over threads, or blocks that do not divide them.
    """
    width, arithmetic = x.shape[-1], numerics.arithmetic
    check(x, arithmetic, "mosaic_gpu", 16)
    blocks = dataclasses.replace(heuristic(width, jnp.float32), vector=1)
    blocks = dataclasses.replace(blocks, rows=blocks.tile_rows)
    numerics = in_lanes(functools.partial(ExchangedLanes, blocks=blocks, width=width), numerics)
    flat = arithmetic.round(x).reshape(-1, width)
    filled = at_least(flat, blocks.rows)

    def body(x_ref, y_ref):
        here = gpu_rows.here(blocks, x_ref.shape[0])
        y_ref.at[here][...] = normalise(load(x_ref.at[here], blocks.layout), eps, numerics, centred=centred)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(filled.shape, jnp.float32),
        grid=(pl.cdiv(len(filled), blocks.rows),),
        grid_names=("block",),
    )
    return kernel(filled)[: len(flat)].reshape(x.shape)


def _rounded(x: Float[Array, "rows channels"], format: Format) -> Float[Array, "rows channels"]:
    """`Format.round` with integers, for Mosaic GPU has no operation that reduces precision."""
    if format.name == "float32":
        return x
    dropped = 23 - format.mantissa_bits
    bits = lax.bitcast_convert_type(x, jnp.int32)
    # Half of the last bit kept, less one where that is zero: to nearest, ties to even. Carries raise the exponent.
    bits = (bits + ((1 << (dropped - 1)) - 1) + ((bits >> dropped) & 1)) & -(1 << dropped)
    rounded = lax.bitcast_convert_type(bits, jnp.float32)
    magnitude = jnp.abs(rounded)
    beyond = jnp.nan if format.name == "float8_e4m3fn" else jnp.inf
    rounded = jnp.where(magnitude > format.largest, jnp.where(x > 0, beyond, -beyond), rounded)
    if format.flush_to_zero:
        rounded = jnp.where(magnitude < format.smallest_normal, 0.0 * x, rounded)
    elif format.smallest_normal > float(jnp.finfo(jnp.float32).smallest_normal):
        subnormal = lax.round(x * (1 / format.smallest), lax.RoundingMethod.TO_NEAREST_EVEN) * format.smallest
        rounded = jnp.where(jnp.abs(x) < format.smallest_normal, subnormal, rounded)
    return jnp.where(x == x, rounded, jnp.nan)


def _correctly_rounded(instruction: str, *operands: Array, layout: Any) -> Any:
    """div.rn.f32 or sqrt.rn.f32 of each element; `/` and `jnp.sqrt` are compiled to approximations."""
    if is_interpreted():
        return jnp.sqrt(*operands) if instruction.startswith("sqrt") else jnp.divide(*operands)
    from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
    from jax._src.lib.mlir.dialects import llvm, vector
    from jax.experimental.mosaic import gpu as mgpu

    @plgpu.inline_mgpu(
        arg_types=(layout,) * len(operands),
        return_type=plgpu.ShapeDtypeStruct(operands[0].shape, jnp.float32, layout=layout),
    )
    def apply(_, *arrays):
        f32 = ir.F32Type.get()
        text = f"{instruction} {', '.join(f'${index}' for index in range(len(arrays) + 1))};"
        registers = np.empty_like(arrays[0].registers)
        for place in np.ndindex(registers.shape):
            inputs = [vector.extract(array.registers[place], [], [0]) for array in arrays]
            result = llvm.inline_asm(f32, inputs, text, "=f" + ",f" * len(inputs))
            registers[place] = vector.from_elements(ir.VectorType.get((1,), f32), [result])
        return mgpu.FragmentedArray(_registers=registers, _layout=arrays[0].layout, _is_signed=None)

    return apply(*operands)  # pyright: ignore[reportCallIssue]


def _moved(x: Float[Array, "rows channels"], blocks: Blocks, amount: int, same: bool) -> Float[Array, "rows channels"]:
    """x[:, amount] in every column if `same`, else x[:, (column + amount) % channels]."""
    if is_interpreted():  # which knows no instructions of the device
        return jnp.broadcast_to(x[:, amount : amount + 1], x.shape) if same else jnp.roll(x, -amount, 1)
    return _exchanged(x, blocks, amount, same)


def _exchanged(x: Array, blocks: Blocks, amount: int, same: bool) -> Any:
    from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]
    from jax._src.lib.mlir.dialects import arith, nvvm, vector
    from jax.experimental.mosaic import gpu as mgpu
    from jax.experimental.mosaic.gpu import utils

    @plgpu.inline_mgpu(
        arg_types=(blocks.layout,),
        return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=blocks.layout),
    )
    def exchange(_, x):
        i32, f32 = ir.IntegerType.get_signless(32), ir.F32Type.get()

        def number(value: int):
            return utils.c(value, i32)

        lane = arith.andi(utils.thread_idx(), number(blocks.lanes - 1))  # among those of a row
        group = arith.andi(utils.thread_idx(), number(32 - blocks.lanes))
        skipped, step = divmod(amount, blocks.lanes)
        further = number(step) if same else arith.addi(lane, number(step))
        source = arith.ori(group, arith.andi(further, number(blocks.lanes - 1)))
        wraps = arith.cmpi(arith.CmpIPredicate.sge, further, number(blocks.lanes))

        def sent(register):
            word = arith.bitcast(i32, vector.extract(register, [], [0]))
            return nvvm.shfl_sync(number(-1), word, source, number(31), nvvm.ShflKind.idx)

        # Axes of the registers: tiles of rows, and parts of a row as long as its lanes.
        registers = np.empty_like(x.registers)
        parts = registers.shape[1]
        for tile in np.ndindex(registers.shape[0]):
            own = x.registers[tile]
            words = {skipped: sent(own[skipped].item())} if same else [sent(own[part].item()) for part in range(parts)]
            for part in range(parts):
                word = words[skipped] if same else words[(part + skipped) % parts]
                if step and not same:
                    word = arith.select(wraps, words[(part + skipped + 1) % parts], word)
                value = vector.from_elements(ir.VectorType.get((1,), f32), [arith.bitcast(f32, word)])
                registers[tile][part] = value
        return mgpu.FragmentedArray(_registers=registers, _layout=x.layout, _is_signed=None)

    return exchange(x)  # pyright: ignore[reportCallIssue]
