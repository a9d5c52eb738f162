"""One suite for every implementation of the normalisations: the kernels in the interpreters of their back ends."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.autotune import trying
from kernels.device import interpreted
from kernels.formats import STORED
from kernels.implementation import Unsupported
from kernels.layer_norm import (
    GEOMETRIC,
    NONE,
    OPTIMAL_MAX,
    PLAIN_MAD,
    NormNumerics,
    add_layer_norm,
    layer_norm,
    mosaic_gpu,
    rms_norm,
    static,
)
from kernels.lut_softmax import softmax
from tests.implementations import (
    IMPLEMENTATIONS,
    KERNELS,
    annotations_ignored,
    lower,
    normal,
    operations_on,
    races_found,
    roundings,
    running,
)

every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("implementation", KERNELS)
few = settings(max_examples=4, derandomize=True)


def defined(x, scale, bias, eps=1e-5, centred=True):
    """The formula, in float64."""
    x = np.asarray(x, np.float64)
    c = x - x.mean(-1, keepdims=True) if centred else x
    y = c / np.sqrt(np.square(c).mean(-1, keepdims=True) + eps) * np.asarray(scale, np.float64)
    return y if bias is None else y + np.asarray(bias, np.float64)


def run(implementation, function, *arrays):
    with running(implementation):
        return jax.jit(function)(*arrays)


# ------------------------------------------------------------------- forward


@every
@few
@given(rows=st.integers(1, 70), width=st.sampled_from([16, 48, 144, 256]), eps=st.sampled_from([1e-5, 1.0]))
def test_layer_norm_is_its_formula_for_any_rows_and_width(implementation, rows, width, eps):
    x, scale, bias = normal(rows, rows, width) * 3 + 1, normal(1, width), normal(2, width)
    y = run(implementation, functools.partial(layer_norm, eps=eps, implementation=implementation), x, scale, bias)
    np.testing.assert_allclose(y, defined(x, scale, bias, eps), atol=1e-5)


@every
@pytest.mark.parametrize("format", STORED)
def test_every_format_is_rounded_once(implementation, format):
    if (implementation, format) == ("mosaic_tpu", "float16"):
        with (
            running(implementation),
            pytest.raises(Unsupported, match="the format of x is float16, which TPUs cannot load"),
        ):
            layer_norm(normal(0, 4, 64, format=format), jnp.ones(64), jnp.ones(64), implementation=implementation)
        return
    x, residual = normal(0, 2, 9, 64, format=format), normal(1, 2, 9, 64, format=format)
    scale, bias = normal(2, 64), normal(3, 64)
    function = functools.partial(add_layer_norm, implementation=implementation)
    y, total = run(implementation, function, x, residual, scale, bias)
    assert y.dtype == total.dtype == format and y.shape == total.shape == x.shape
    expected = (x.astype(jnp.float32) + residual.astype(jnp.float32)).astype(format)
    np.testing.assert_array_equal(np.asarray(total, np.float32), np.asarray(expected, np.float32))
    np.testing.assert_allclose(
        np.asarray(y, np.float64),
        defined(total, scale, bias),
        rtol=float(jnp.finfo(format).eps) / 2 * 1.01,
        atol=max(1e-5, float(jnp.finfo(format).smallest_subnormal)),
    )


@every
@pytest.mark.parametrize("norm", [NONE, PLAIN_MAD, OPTIMAL_MAX, GEOMETRIC, static(1e3, 1.0)], ids=repr)
def test_a_pre_normaliser_changes_nothing_and_eps_is_exact(implementation, norm):
    x = normal(0, 12, 64) * np.logspace(-4, 4, 12)[:, None]  # eps dominates the small rows
    scale, bias = normal(1, 64), normal(2, 64)
    function = functools.partial(layer_norm, pre_normaliser=norm, implementation=implementation)
    np.testing.assert_allclose(run(implementation, function, x, scale, bias), defined(x, scale, bias), atol=2e-5)


@every
@pytest.mark.parametrize("norm", [PLAIN_MAD, OPTIMAL_MAX, GEOMETRIC], ids=["mad", "max", "geometric"])
def test_with_a_pre_normaliser_squares_beyond_float32_are_no_harm(implementation, norm):
    x, ones, zeros = normal(0, 4, 64) * 1e30, jnp.ones(64), jnp.zeros(64)
    function = functools.partial(layer_norm, pre_normaliser=norm, implementation=implementation)
    np.testing.assert_allclose(run(implementation, function, x, ones, zeros), defined(x, ones, zeros), atol=1e-5)


@every
@pytest.mark.parametrize("norm", [NONE, GEOMETRIC], ids=["none", "geometric"])
@pytest.mark.slow_but("none-xla", "geometric-mosaic_gpu", "geometric-mosaic_tpu")
def test_constant_rows_give_the_bias_and_finite_gradients(implementation, norm):
    x, scale, bias = jnp.full((3, 32), 7.0), normal(1, 32), normal(2, 32)

    def function(x):
        return layer_norm(x, scale, bias, pre_normaliser=norm, implementation=implementation)

    np.testing.assert_allclose(run(implementation, function, x), np.tile(bias, (3, 1)), atol=1e-6)
    assert np.isfinite(run(implementation, jax.grad(lambda x: jnp.sum(jnp.square(function(x)))), x)).all()


@every
def test_rms_norm_is_its_formula(implementation):
    x, scale = normal(0, 2, 5, 48) + 1, normal(1, 48)
    y = run(implementation, functools.partial(rms_norm, implementation=implementation), x, scale)
    np.testing.assert_allclose(y, defined(x, scale, None, 1e-6, centred=False), atol=1e-5)


@every
def test_without_scale_and_bias_they_are_one_and_zero(implementation):
    x = normal(0, 5, 32)

    def functions(scale, bias):
        centred = layer_norm(x, scale, bias, implementation=implementation)
        return centred, rms_norm(x, scale, implementation=implementation)

    without = run(implementation, lambda: functions(None, None))
    np.testing.assert_array_equal(without, run(implementation, lambda: functions(jnp.ones(32), jnp.zeros(32))))


@every
@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)])
def test_no_rows_are_no_rows_and_leave_no_gradient(implementation, shape):
    def function(x, scale):
        return add_layer_norm(x, x, scale, None, implementation=implementation)

    def both(x, scale):
        results, transpose = jax.vjp(function, x, scale)
        return results, transpose(results)

    results, (dx, dscale) = run(implementation, both, jnp.zeros(shape), jnp.ones(32))
    assert [a.shape for a in (*results, dx)] == [shape] * 3
    np.testing.assert_array_equal(dscale, np.zeros(32))


# ------------------------------------------------------------------ gradients


def loss(implementation, norm, x, residual, scale, bias):
    """Sums the outputs of all three functions, both of `add_layer_norm`, weighted at random."""
    y, total = add_layer_norm(x, residual, scale, bias, pre_normaliser=norm, implementation=implementation)
    outputs = (
        y,
        total,
        layer_norm(x, scale, bias, pre_normaliser=norm, implementation=implementation),
        rms_norm(residual, scale, implementation=implementation),
    )
    return sum(jnp.sum(a.astype(jnp.float32) * normal(i, *a.shape)) for i, a in enumerate(outputs))


@pytest.mark.slow_but("none-mosaic_gpu", "geometric-mosaic_tpu")
@kernels
@pytest.mark.parametrize("norm, format", [(NONE, "float32"), (GEOMETRIC, "bfloat16")], ids=["none", "geometric"])
def test_gradients_are_those_of_the_reference(implementation, norm, format):
    rows, width = (37, 48) if format == "float32" else (70, 64)
    arrays = normal(10, rows, width, format=format), normal(11, rows, width, format=format), normal(12, width)
    arrays = (*arrays, normal(13, width))
    gradient = [
        run(name, jax.grad(functools.partial(loss, name, norm), argnums=(0, 1, 2, 3)), *arrays)
        for name in ("reference", implementation)
    ]
    for expected, got in zip(*gradient, strict=True):
        assert got.dtype == expected.dtype
        scale = np.abs(np.asarray(expected, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=roundings(format) * scale
        )


@pytest.mark.parametrize(
    "rows, width", [(70, 24), *(pytest.param(3, width, marks=pytest.mark.slow) for width in (4100, 8704))]
)
def test_blocks_of_a_gpu_that_go_through_many_tiles(rows, width):
    """Two blocks forward and one backward fetch the next tile ahead; wide rows are added up in shared memory."""
    x, scale, bias = normal(0, rows, width), normal(1, width), normal(2, width)
    few = dataclasses.replace(mosaic_gpu.ROWS.heuristic(width, "float32"), programs=2, back=1)
    few = dataclasses.replace(few, rows=few.tile_rows if few.parts == 1 else few.rows)

    def both(implementation):
        function = functools.partial(layer_norm, implementation=implementation)
        y, transpose = jax.vjp(function, x, scale, bias)
        return y, *transpose(y)

    with trying(few):
        got = run("mosaic_gpu", lambda: both("mosaic_gpu"))
    for mine, right in zip(got, jax.jit(lambda: both("xla"))(), strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-5 * float(jnp.abs(right).max()))


@kernels
@pytest.mark.slow_but("mosaic_gpu")
def test_functions_can_be_mapped(implementation):
    x, scale, bias = normal(0, 3, 5, 32), normal(1, 3, 32), normal(2, 32)

    def function(x, scale):
        return jax.grad(lambda s: jnp.sum(jnp.square(layer_norm(x, s, bias, implementation=implementation))))(scale)

    mapped = run(implementation, jax.vmap(function), x, scale)
    for row in range(3):
        np.testing.assert_allclose(mapped[row], run(implementation, function, x[row], scale[row]), atol=1e-4)


def test_no_thread_of_the_gpu_kernel_races_with_another():
    """One block goes through all rows."""
    x, scale = normal(0, 600, 32), normal(1, 32)
    one = dataclasses.replace(mosaic_gpu.ROWS.heuristic(32, "float32"), programs=1)
    with interpreted("mosaic_gpu", detect_races=True), trying(one):
        jax.jit(functools.partial(rms_norm, implementation="mosaic_gpu"))(x, scale).block_until_ready()
    assert not races_found("mosaic_gpu")


@pytest.mark.parametrize("function", [layer_norm, softmax])
@pytest.mark.parametrize("width", [1040, 4104, 9000])  # 4, 8 and 16 warps share a row of a norm
def test_warps_that_share_a_row_do_not_race(width, function):
    def loss(x):
        columns = (jnp.ones(width), jnp.ones(width)) if function is layer_norm else ()
        return jnp.sum(jnp.sin(function(x, *columns, implementation="mosaic_gpu")))

    with interpreted("mosaic_gpu", detect_races=True):
        jax.jit(jax.grad(loss))(normal(0, 1, width)).block_until_ready()
    assert not races_found("mosaic_gpu")


# -------------------------------------------------------------------- lowering


@pytest.mark.slow_but("1024-bfloat16-mosaic_gpu", "144-float32-mosaic_tpu", "144-float8_e4m3fn-mosaic_gpu")
@kernels
@pytest.mark.parametrize("format", STORED)
@pytest.mark.parametrize("width", [144, 1024])
def test_forward_and_backward_lower_for_the_device(implementation, format, width):
    if (implementation, format) == ("mosaic_tpu", "float16"):
        pytest.skip("a TPU cannot load float16")
    x, parameter = jax.ShapeDtypeStruct((1001, width), format), jax.ShapeDtypeStruct((width,), "float32")

    def both(x, residual, scale, bias):
        function = functools.partial(add_layer_norm, implementation=implementation, pre_normaliser=GEOMETRIC)
        outputs, transpose = jax.vjp(function, x, residual, scale, bias)
        return outputs, transpose(outputs)

    assert lower(implementation, both, x, x, parameter, parameter).count("custom_call") >= 2


@pytest.mark.parametrize("shape", [(2, 500, 144), (3, 375), (9, 1041)])
def test_the_gpu_kernel_reads_and_writes_tensors_as_they_are(shape):
    """No copy, pad or slice of a tensor stands beside the kernels, for any channels, and for rows that fill no tile."""

    def both(x, residual, scale, bias):
        function = functools.partial(add_layer_norm, implementation="mosaic_gpu")
        outputs, transpose = jax.vjp(function, x, residual, scale, bias)
        return transpose(outputs)

    x, parameter = jax.ShapeDtypeStruct(shape, "bfloat16"), jax.ShapeDtypeStruct(shape[-1:], "float32")
    program = lower("mosaic_gpu", both, x, x, parameter, parameter)
    assert operations_on(math.prod(shape), program) - {"reshape", "reduce"} == {"custom_call"}  # sums of the blocks'


# ------------------------------------------------------------------- bad input


def test_bad_input_is_named():
    x, ones = normal(0, 4, 32), jnp.ones(32)
    with pytest.raises(Unsupported, match="'mosaic_gpu' needs an NVIDIA GPU from Hopper on, and this device is 'cpu'"):
        layer_norm(x, ones, ones, implementation="mosaic_gpu")
    with pytest.raises(ValueError, match="'cuda' is not one of reference, xla, mosaic_gpu, mosaic_tpu, or None"):
        layer_norm(x, ones, ones, implementation="cuda")
    with pytest.raises(ValueError, match=r"eps=-1\.0 must not be negative"):
        layer_norm(x, ones, ones, eps=-1.0)
    wide = jnp.ones(16_400)
    with interpreted("mosaic_gpu"), pytest.raises(Unsupported, match=r"16400 channels of x: .* at most 16384; use"):
        layer_norm(wide[None], wide, wide, implementation="mosaic_gpu")
    with pytest.raises(Unsupported, match="'mosaic_gpu' emulates no numerics: use 'xla', or None"):
        layer_norm(x, ones, ones, numerics=NormNumerics(), implementation="mosaic_gpu")
    with pytest.raises(ValueError, match="give pre_normaliser to NormNumerics"):
        layer_norm(x, jnp.ones(4), jnp.ones(4), numerics=NormNumerics(), pre_normaliser=GEOMETRIC, axis=0)


def test_a_traced_eps_is_named():
    x, ones = normal(0, 4, 32), jnp.ones(32)
    named = pytest.raises(ValueError, match=r"eps=.* must be a number that is known before tracing")
    with annotations_ignored(), named:
        jax.jit(lambda eps: layer_norm(x, ones, ones, eps=eps))(1e-5)
