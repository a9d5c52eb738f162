"""Normalisation on TPUs (Mosaic): blocks of rows stream through vector memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import tpu_rows
from kernels.autotune import tuned
from kernels.implementation import Unsupported
from kernels.layer_norm import block, fused
from kernels.layer_norm.form import Form, stored
from kernels.tpu_rows import WIDEST, Blocks
from kernels.typing import Array, Float

_BLOCK_BYTES = 2**19  # of a block in float32; several are in flight, and vector memory holds 16 MiB or more


def normalise(
    x: Float[Array, "*batch channels"],
    residual: Float[Array, "*batch channels"] | None,
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"] | None,
    form: Form,
) -> tuple[Float[Array, "*batch channels"], Float[Array, "*batch channels"] | None]:
    """See `reference.normalise`. Raises Unsupported for float16, which a TPU cannot load."""
    for name, a in {"x": x, "residual": residual}.items():
        if a is not None and a.dtype == jnp.float16:
            raise Unsupported(
                f"layer_norm: {name} is float16, which TPUs cannot load: cast it to bfloat16 or float32, or use "
                "implementation='xla'"
            )
    if x.shape[-1] > WIDEST:
        raise Unsupported(
            f"layer_norm: x has {x.shape[-1]} channels, and a block of vector memory holds rows of {WIDEST}: "
            "use implementation='xla'"
        )
    return fused.normalise(_KERNELS, x, residual, scale, bias, form)


def heuristic(width: int) -> Blocks:
    """Blocks for a width that was not measured."""
    return tpu_rows.heuristic(width, _BLOCK_BYTES)


def _specs(x: Array) -> tuple[int, tuple[int], pl.BlockSpec, pl.BlockSpec]:
    """Rows of a block, the grid, and how a tensor and a parameter are cut up."""
    count, width = x.shape
    blocks = tuned("layer_norm", "mosaic_tpu", Blocks, width=width, format=x.dtype.name) or heuristic(width)
    rows = blocks.fitted(count)
    tensor = pl.BlockSpec((rows, width), lambda index: (index, 0))
    parameter = pl.BlockSpec((1, width), lambda index: (0, 0))
    return rows, (pl.cdiv(count, rows),), tensor, parameter


def _forward(x: Array, residual: Array | None, scale: Array, bias: Array | None, form: Form):
    _, grid, tensor, parameter = _specs(x)
    added, shifted = residual is not None, bias is not None

    def body(*refs):
        inputs, outputs = list(refs[: 2 + added + shifted]), refs[2 + added + shifted :]
        x = inputs.pop(0)[...].astype(jnp.float32)
        if added:
            total = stored(x + inputs.pop(0)[...].astype(jnp.float32), outputs[1].dtype)
            outputs[1][...] = total
            x = total.astype(jnp.float32)
        y = block.normalised(x, form)[0] * inputs.pop(0)[...].astype(jnp.float32)
        if shifted:
            y = y + inputs.pop(0)[...].astype(jnp.float32)
        outputs[0][...] = stored(y, outputs[0].dtype)

    like_x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = pl.pallas_call(
        body,
        out_shape=[like_x] * (1 + added),
        grid=grid,
        in_specs=[tensor] * (1 + added) + [parameter] * (1 + shifted),
        out_specs=[tensor] * (1 + added),
        compiler_params=pltpu.CompilerParams(dimension_semantics=(pltpu.PARALLEL,)),
    )
    results = _apply(call, x, residual, scale, bias)
    return results[0], results[1] if added else None


def _backward(total: Array, scale: Array, cotangent: Array, passed: Array | None, form: Form):
    rows, grid, tensor, parameter = _specs(total)
    count, width = total.shape

    def body(*refs):
        *inputs, dx_ref, dscale_ref, dbias_ref = refs
        index = pl.program_id(0)
        total, scale, cotangent, *passed = (ref[...].astype(jnp.float32) for ref in inputs)
        dx, dscale = block.gradient(total, scale, cotangent, form)
        if passed:
            dx = dx + passed[0]
        dx_ref[...] = stored(dx, dx_ref.dtype)
        # The last block reads past the end: whatever stands there counts for nothing.
        inside = index * rows + jax.lax.broadcasted_iota(jnp.int32, dx.shape, 0) < count
        for ref, addends in ((dscale_ref, dscale), (dbias_ref, cotangent)):
            sums = jnp.sum(jnp.where(inside, addends, 0.0), axis=0, keepdims=True)

            @pl.when(index == 0)
            def _(ref=ref, sums=sums):
                ref[...] = sums

            @pl.when(index > 0)
            def _(ref=ref, sums=sums):
                ref[...] += sums

    sums = jax.ShapeDtypeStruct((1, width), jnp.float32)
    call = pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct(total.shape, total.dtype), sums, sums],
        grid=grid,
        in_specs=[tensor, parameter, tensor] + [tensor] * (passed is not None),
        out_specs=[tensor, parameter, parameter],
        # In turn: every block adds to the same sums.
        compiler_params=pltpu.CompilerParams(dimension_semantics=(pltpu.ARBITRARY,)),
    )
    dx, dscale, dbias = _apply(call, total, scale, cotangent, passed)
    return dx, dscale[0], dbias[0]


def _apply(call: Callable, *arrays: Array | None):
    """Parameters as rows; `jax.vmap` calls in turn, for the sums of blocks belong to one call."""
    present = (a if a.ndim == 2 else a[None] for a in arrays if a is not None)
    return jax.custom_batching.sequential_vmap(lambda *arrays: call(*arrays))(*present)


_KERNELS = fused.Kernels(_forward, _backward)
