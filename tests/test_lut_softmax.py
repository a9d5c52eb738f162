"""Softmax from tables: error laws, figures, masks, domains, and the same function in float16 arithmetic."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.emulator import FLOAT16, Arithmetic, Format
from kernels.emulator.emulate import emulate
from kernels.lut_softmax import BoundedExp, Exp, Logarithm, Reciprocal, SoftmaxTables, Table, log_softmax, softmax

pytestmark = pytest.mark.usefixtures("optimised")

BOUNDED = SoftmaxTables(exp=BoundedExp())
DEVICES = {
    prefix + order: Arithmetic(Format("float16", flush_to_zero=bool(prefix)), block=block)
    for prefix in ("", "flushed ")
    for order, block in (("tree", None), ("sequential", 1))
}


@functools.cache
def run(tables, device=None):
    function = functools.partial(softmax, tables=tables)
    return jax.jit(function if device is None else emulate(function, DEVICES[device]))


def rows(seed, num_keys, deviation, num_rows=64):
    """Scores that float16 holds, and a mask that hides all of the first row and a fifth of the others."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_rows, num_keys)) * deviation + 5 * rng.normal(size=(num_rows, 1))
    mask = rng.random(scores.shape) < 0.8
    mask[0] = False
    return scores.astype(np.float16).astype(np.float32), mask


def exact(scores, mask):
    shifted = np.where(mask, scores.astype(np.float64), -np.inf)
    shifted = shifted - np.max(shifted, -1, keepdims=True, where=mask, initial=-1e9)
    weights = np.exp(shifted)
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


# --------------------------------------------------------------------- tables


@settings(max_examples=25)
@given(st.integers(2, 7), st.booleans(), st.integers(0, 2**31))
def test_tables_keep_their_error_laws(bits, interpolated, seed):
    h = 2.0**-bits
    x = np.random.default_rng(seed).uniform(1.0, 2.0, 2_000).astype(np.float32)
    wide = x.astype(np.float64)
    for function, slope, curvature in ((np.exp, np.exp, np.exp), (np.reciprocal, lambda m: m**-2, lambda m: 2 * m**-3)):
        got = np.asarray(Table(function, 1.0, h, 2**bits + 1, interpolated)(jnp.asarray(x)), np.float64)
        corner = 2.0 if function is np.exp else 1.0  # where both derivatives are largest
        bound = h * h / 8 * curvature(corner) if interpolated else h / 2 * slope(corner)
        assert np.abs(got - function(wide)).max() <= bound * 1.001 + 2e-6


@pytest.mark.parametrize("interpolated", [True, False])
def test_exp_errs_by_its_tables_step_over_its_whole_range(interpolated):
    x = np.linspace(-80.0, 80.0, 20_001).astype(np.float32)
    exp = Exp(step=2**-5, interpolated=interpolated)
    relative = np.asarray(exp(jnp.asarray(x)), np.float64) / np.exp(x.astype(np.float64)) - 1
    law = 2**-10 / 8 if interpolated else math.exp(2**-6) - 1
    assert law / 2 < np.abs(relative).max() < law * 1.01 + 2e-5  # of rounding x to float32, mostly


def test_a_table_is_clipped_outside_its_domain_and_the_bounded_exp_is_zero_below():
    table = Table(np.exp, -1.0, 0.25, 9)
    outside = jnp.array([-jnp.inf, -5.0, 5.0, jnp.inf])
    np.testing.assert_allclose(table(outside), np.exp([-1.0, -1.0, 1.0, 1.0]), rtol=1e-6)
    np.testing.assert_array_equal(BoundedExp()(jnp.array([-12.01, -60000.0])), [0.0, 0.0])


def test_a_step_that_rounds_is_refused():
    with pytest.raises(ValueError, match="power of two"):
        Table(np.exp, -1.0, 0.1, 11)
    with pytest.raises(ValueError, match="multiple"):
        Table(np.exp, -1.1, 0.25, 11)


@settings(max_examples=25)
@given(st.integers(-30, 30), st.integers(0, 2**31))
def test_reciprocal_and_logarithm_hold_over_all_exponents(exponent, seed):
    x = (np.random.default_rng(seed).uniform(1, 2, 100) * 2.0**exponent).astype(np.float32)
    quotient = np.asarray(Reciprocal().times(jnp.full(100, 3.0), jnp.asarray(x)))
    np.testing.assert_allclose(quotient, 3.0 / x, rtol=2**-16 * 1.1)  # h^2 / 4
    np.testing.assert_allclose(Logarithm()(jnp.asarray(x)), np.log(x), atol=2**-13 * 1.1)  # h^2 / 8


# -------------------------------------------------------------------- softmax


@pytest.mark.parametrize("tables", [SoftmaxTables(), BOUNDED], ids=["exponent", "bounded"])
@settings(max_examples=12)
@given(st.integers(0, 2**31), st.sampled_from([2, 128]), st.floats(1.0, 12.0))
def test_probabilities_are_within_2e_4_and_masked_keys_exactly_zero(tables, seed, num_keys, deviation):
    """Figure of merit; the default needs 253 entries, all three tables together."""
    scores, mask = rows(seed, num_keys, deviation)
    got = np.asarray(run(tables)(scores, mask))
    assert np.abs(got - exact(scores, mask)).max() < 2e-4
    assert (got[~mask] == 0).all() and (got[0] == 0).all()


def test_the_tables_are_small():
    assert SoftmaxTables().entries <= 256 and BoundedExp().entries <= 256


@pytest.mark.slow_but("flushed tree")
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=8)
@given(st.integers(0, 2**31), st.sampled_from([2, 128]), st.floats(0.1, 40.0), st.floats(-200, 200))
def test_in_float16_rounding_adds_a_few_units_and_nothing_overflows(device, seed, num_keys, deviation, shift):
    """The units are u = 2^-11: the sum rounds log2(K) (tree) or K (sequential) times, the rest six times more."""
    scores, mask = rows(seed, num_keys, deviation)
    scores = (scores + shift).astype(np.float16).astype(np.float32)
    got = np.asarray(run(SoftmaxTables(), device)(scores, mask))
    roundings = 6 + (math.log2(num_keys) if "tree" in device else num_keys)
    assert np.abs(got - exact(scores, mask)).max() < roundings * 2**-11
    assert (got[~mask] == 0).all() and (got[0] == 0).all()
    assert (got == got.astype(np.float16)).all()


@pytest.mark.parametrize("level", [-500.0, -20.0, -0.5, 0.0, 3.9, 4.0, 20.0, 500.0])
def test_the_condition_is_two_sided(level):
    """A row far below the tables' domain needs rescaling as much as one above; in between, it is left where it is."""
    scores = (level + np.array([[0.0, -1.0, -2.0, -3.0]])).astype(np.float32)
    everything = np.ones((1, 4), bool)
    for tables in (SoftmaxTables(), BOUNDED):
        for device in (None, "flushed tree"):
            got = np.asarray(run(tables, device)(scores, everything))
            np.testing.assert_allclose(got, exact(scores, everything), atol=2e-3)


def test_headroom_saves_what_flush_to_zero_would_lose():
    """512 keys 10 below the maximum hold 2 % of the probability; each would be flushed if the maximum became 1."""
    scores = np.full((1, 513), -10.0, np.float32)
    scores[0, 0] = 0.0
    everything, shift = np.ones((1, 513), bool), 100.0
    true = 1 / (1 + 512 * math.exp(-10))
    tables = SoftmaxTables()
    kept = run(tables, "flushed tree")(scores + shift, everything)[0, 0]
    assert abs(kept - true) < 2e-3
    device = DEVICES["flushed tree"]
    flushed = emulate(lambda s: jnp.exp(s - 0.0).sum(), device)(jnp.asarray(scores))
    assert flushed == 1.0 and tables.headroom(513) == 4


def test_more_keys_lower_the_window_so_that_their_sum_fits():
    tables = SoftmaxTables()
    for num_keys in (2, 128, 4096, 16_384):
        high = tables.safe_window(num_keys)[1]
        assert num_keys * math.exp(high) <= 65504 / 4 * 1.001
        assert num_keys * 2 ** tables.headroom(num_keys) <= 65504 / 4 * 1.001
    scores = np.full((1, 8192), 3.0, np.float32)
    got = np.asarray(run(tables, "tree")(scores, np.ones_like(scores, bool)))
    np.testing.assert_allclose(got, 1 / 8192, rtol=2e-3)


# ---------------------------------------------------------------- log-softmax


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(0.1, 1000.0))
def test_log_softmax_is_finite_for_every_symbol(seed, deviation):
    logits = np.random.default_rng(seed).normal(size=(8, 60)) * deviation
    logits = logits.astype(np.float16).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = wide - wide.max(-1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_half()[0](logits), expected, atol=2e-4, rtol=1e-6)
    half = np.asarray(log_half()[1](logits))
    assert np.isfinite(half).all()
    np.testing.assert_allclose(half, expected, atol=2e-2, rtol=2e-3)


@functools.cache
def log_half():
    function = functools.partial(log_softmax, tables=SoftmaxTables())
    return jax.jit(function), jax.jit(emulate(function, Arithmetic(FLOAT16)))


def test_log_softmax_is_finite_where_the_scores_themselves_nearly_overflow():
    got = np.asarray(log_half()[1](jnp.array([[65504.0, -65504.0, 0.0]])))
    assert np.isfinite(got).all() and got[0, 0] == 0.0
