"""One suite for every implementation of the softmax: the kernels in the interpreters of their back ends."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.device import interpreted
from kernels.formats import COMPUTED
from kernels.implementation import Unsupported
from kernels.lut_softmax import BoundedExp, Exp, Reciprocal, SoftmaxTables, softmax
from tests.implementations import IMPLEMENTATIONS, KERNELS, lower, normal, operations_on, roundings, running

TABLES = {
    "exponent": SoftmaxTables(),
    "bounded": SoftmaxTables(exp=BoundedExp()),
    "nearest": SoftmaxTables(exp=Exp(step=2**-5, interpolated=False), reciprocal=Reciprocal(2**-5, False)),
}
every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("implementation", KERNELS)
few = settings(max_examples=3, derandomize=True)


def problem(seed, rows, keys, size=5.0, format="float32"):
    """Scores, and a mask that hides all of the first row and a third of the others."""
    mask = np.random.default_rng(seed).random((rows, keys)) < 0.7
    mask[0] = False
    return (normal(seed, rows, keys) * size).astype(format), jnp.asarray(mask)


def defined(scores, mask):
    scores, mask = np.asarray(scores, np.float64), np.broadcast_to(mask, scores.shape)
    weights = np.exp(np.where(mask, scores - scores.max(-1, keepdims=True, where=mask, initial=-1e9), -np.inf))
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


def run(implementation, function, *arrays):
    with running(implementation):
        return np.asarray(jax.jit(function)(*arrays), np.float32)


@every
@few
@given(rows=st.integers(1, 40), keys=st.sampled_from([1, 48, 75, 130]), size=st.sampled_from([0.3, 5.0, 300.0]))
def test_softmax_is_its_formula_for_any_rows_and_keys(implementation, rows, keys, size):
    scores, mask = problem(rows, rows, keys, size)
    got = run(implementation, functools.partial(softmax, implementation=implementation), scores, mask)
    np.testing.assert_allclose(got, defined(scores, mask), atol=1e-6)
    assert (got[~np.asarray(mask)] == 0).all() and (got[0] == 0).all()


@every
@pytest.mark.parametrize("format", COMPUTED)
def test_every_format_is_rounded_once(implementation, format):
    scores, mask = problem(0, 9, 64, format=format)
    function = functools.partial(softmax, implementation=implementation)
    if (implementation, format) == ("mosaic_tpu", "float16"):
        with (
            running(implementation),
            pytest.raises(Unsupported, match="format of scores is float16, which TPUs cannot load"),
        ):
            function(scores, mask)
        return
    with running(implementation):
        assert jax.eval_shape(function, scores, mask).dtype == format
    got = run(implementation, function, scores, mask)
    np.testing.assert_allclose(
        got, defined(scores, mask), rtol=max(1e-5, float(jnp.finfo(format).eps) / 2 * 1.01), atol=1e-7
    )


@kernels
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.slow_but("exponent-mosaic_tpu", "bounded-mosaic_gpu", "nearest-mosaic_gpu")
def test_with_tables_it_is_the_softmax_of_the_same_tables(implementation, tables):
    """Flat and peaked rows; in the window, where they are not rescaled, and beyond it on either side."""
    scores, mask = problem(3, 33, 80, 1.0)
    scores = scores * jnp.tile(jnp.array([1.0, 5.0, 40.0]), 11)[:, None] + jnp.linspace(-20, 20, 33)[:, None]
    function = functools.partial(softmax, tables=TABLES[tables])
    expected = run("xla", functools.partial(function, implementation="xla"), scores, mask)
    got = run(implementation, functools.partial(function, implementation=implementation), scores, mask)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert (got[~np.asarray(mask)] == 0).all()


@kernels
def test_the_mask_is_broadcast(implementation):
    scores = normal(0, 2, 3, 5, 32)
    for shape in [(2, 1, 5, 32), (32,)]:
        mask = jnp.asarray(np.random.default_rng(1).random(shape) < 0.6)
        got = run(implementation, functools.partial(softmax, implementation=implementation), scores, mask)
        np.testing.assert_allclose(got, defined(scores, mask), atol=1e-6)


@pytest.mark.slow_but("float32-mosaic_tpu", "bfloat16-mosaic_gpu")
@kernels
@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_gradients_are_those_of_the_reference_and_zero_where_masked(implementation, format):
    scores, mask = problem(5, 21, 75, 2.0, format)
    weights = normal(6, 21, 75)

    def gradient(implementation):
        def loss(scores):
            return jnp.sum(weights * softmax(scores, mask, implementation=implementation))

        return run(implementation, jax.grad(loss), scores)

    got, expected = gradient(implementation), gradient("reference")
    np.testing.assert_allclose(got, expected, atol=roundings(format))
    assert (got[~np.asarray(mask)] == 0).all() and (got[1] != 0).any()


@every
@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (2, 0, 16)])
def test_nothing_is_shared_among_nothing(implementation, shape):
    scores, mask = jnp.zeros(shape), jnp.ones(shape, bool)
    for tables in (None, SoftmaxTables()):
        function = functools.partial(softmax, tables=tables, implementation=implementation)
        assert run(implementation, function, scores, mask).shape == shape


@kernels
def test_it_can_be_mapped(implementation):
    scores, mask = problem(0, 6, 32)
    function = functools.partial(softmax, implementation=implementation)
    mapped = run(implementation, jax.vmap(function), scores[:, None], mask[:, None])
    np.testing.assert_allclose(mapped[:, 0], defined(scores, mask), atol=1e-6)


@pytest.mark.slow_but("80-float16-mosaic_gpu", "375-float32-mosaic_tpu")
@kernels
@pytest.mark.parametrize("format", COMPUTED)
@pytest.mark.parametrize("keys", [80, 375])
def test_it_lowers_for_the_device(implementation, format, keys):
    if (implementation, format) == ("mosaic_tpu", "float16"):
        pytest.skip("a TPU cannot load float16")

    def all_of_them(scores, mask):
        results, transpose = jax.vjp(lambda scores: softmax(scores, mask, implementation=implementation), scores)
        tables = [softmax(scores, mask, tables=t, implementation=implementation) for t in TABLES.values()]
        return results, transpose(results), tables

    scores, mask = jax.ShapeDtypeStruct((1001, keys), format), jax.ShapeDtypeStruct((1001, keys), "bool")
    assert lower(implementation, all_of_them, scores, mask).count("custom_call") >= 2 + len(TABLES)


@pytest.mark.parametrize(
    "shape, mask",
    [((2, 4, 64, 512), (2, 1, 1, 512)), ((2, 4, 64, 375), (2, 1, 64, 375)), ((5, 3000), (5, 3000)), ((3, 75), (3, 75))],
)
def test_the_gpu_kernel_reads_scores_and_mask_as_they_are(shape, mask):
    """No pass over the scores or the mask stands beside the kernels, for any keys, and for rows that fill no tile."""

    def both(scores, mask):
        p, transpose = jax.vjp(lambda s: softmax(s, mask, implementation="mosaic_gpu"), scores)
        return transpose(p)

    program = lower("mosaic_gpu", both, *(jax.ShapeDtypeStruct(*a) for a in ((shape, "bfloat16"), (mask, "bool"))))
    assert operations_on(math.prod(mask), program) - {"reshape"} == {"custom_call"}


def test_bad_input_is_named():
    scores, mask = problem(0, 4, 16)
    with pytest.raises(Unsupported, match="lut_softmax: implementation='mosaic_tpu' needs a TPU"):
        softmax(scores, mask, implementation="mosaic_tpu")
    with pytest.raises(
        ValueError, match="format of scores is float8_e5m2, not one of float32, bfloat16, float16: cast it"
    ):
        softmax(scores.astype(jnp.float8_e5m2), mask)
    scores, mask = problem(0, 1, 32_800)
    with interpreted("mosaic_gpu"), pytest.raises(Unsupported, match=r"32800 keys of scores: .* at most 32768; use"):
        softmax(scores, mask, implementation="mosaic_gpu")
