"""Pre-normalisers: the theorems of docs/numerics.md, and the emulated LayerNorm that rests on them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.numerics import distributions, random_peaks, row_errors, summary
from kernels.emulator import BFLOAT16, FLOAT8_E4M3FN, FLOAT16, Arithmetic, Format
from kernels.layer_norm import (
    GEOMETRIC,
    NONE,
    OPTIMAL_MAD,
    OPTIMAL_MAX,
    PLAIN_MAD,
    NormNumerics,
    PreNormaliser,
    layer_norm,
    rms_norm,
    static,
)

pytestmark = pytest.mark.usefixtures("optimised")

FLUSHING = Format("float16", flush_to_zero=True)
many = settings(max_examples=60, derandomize=True)
few = settings(max_examples=8, derandomize=True)
powers = st.one_of(st.sampled_from([1.0, 2.0, 3.0]), st.floats(1, 6))
shapes = st.tuples(st.integers(0, 2**31), st.floats(0.1, 6), st.floats(0, 1))


def row(width, shape, centred):
    """Magnitudes spread over exp(+/- sharpness), some of them zero: from almost constant to almost one-hot."""
    seed, sharpness, zeros = shape
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], width) * np.exp(sharpness * rng.standard_normal(width)) * (rng.random(width) >= zeros)
    return x - x.mean() if centred else x


def scale(norm, c, limit, p, centred):
    """s, by its definition in `kernels.layer_norm.pre_normaliser`."""
    exponent = {"mad": 1.0, "max": 0.0, "geometric": 1 / p}[norm.surrogate]
    mad, largest = np.abs(c).mean(), np.abs(c).max()
    s = norm.constant(len(c), limit, p=p, centred=centred) * mad**exponent * largest ** (1 - exponent)
    return 2.0 ** math.ceil(math.log2(s)) if norm.power_of_two else s


def total(norm, c, limit=1.0, p=2.0, centred=True):
    return np.sum(np.abs(c / scale(norm, c, limit, p, centred)) ** p)


# -------------------------------------------------------------------- theorems


@many
@given(
    st.sampled_from(["mad", "max", "geometric"]),
    st.booleans(),
    st.booleans(),
    st.integers(2, 600),
    shapes,
    powers,
    st.booleans(),
)
def test_theorem_1_the_sum_of_every_row_is_within_the_bounds(
    surrogate, optimal, power_of_two, width, shape, p, centred
):
    norm = PreNormaliser(surrogate, optimal=optimal, power_of_two=power_of_two and optimal)
    c = row(width, shape, centred)
    assume(np.abs(c).max() > 1e-6)
    limit = 16384.0
    lower, upper = norm.bounds(width, limit, p=p, centred=centred)
    result = total(norm, c, limit, p, centred)
    assert lower * (1 - 1e-9) <= result <= upper * (1 + 1e-9)
    assert not optimal or upper == pytest.approx(limit)


@pytest.mark.slow_but("512-2.0", "2-3.0", "8-1.5")
@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("width", [2, 8, 512])
def test_theorem_1_rows_that_reach_the_bounds(width, p):
    signs = np.tile([1.0, -1.0], width // 2)
    pair, hot = np.zeros(width), np.eye(width)[0]
    pair[0], pair[1] = 1, -1
    bounds = {name: PreNormaliser(name, optimal=False).bounds(width, 1.0, p=p) for name in ("mad", "max", "geometric")}
    totals = {name: lambda c, n=name: total(PreNormaliser(n, optimal=False), c, p=p) for name in bounds}
    assert bounds["mad"] == pytest.approx((totals["mad"](signs), totals["mad"](pair)))
    assert bounds["max"] == pytest.approx((totals["max"](hot - 1 / width), totals["max"](signs)))
    assert bounds["geometric"][1] == pytest.approx(totals["geometric"](signs))
    # The flattest row, uncentred: one element of 1, the others v. Scan v for the smallest sum.
    rows = (hot + (1 - hot) * v for v in np.linspace(0, 1, 20_001))
    geometric = PreNormaliser("geometric", optimal=False)
    smallest = min(total(geometric, c, p=p, centred=False) for c in rows)
    assert geometric.bounds(width, 1.0, p=p, centred=False)[0] == pytest.approx(smallest, rel=1e-6)


def test_theorem_1_a_centred_row_reaches_the_lower_bound_at_square_widths():
    v = 1 / 13  # 1 / (1 + sqrt(144))
    c = np.concatenate([[1.0], np.full(65, v), np.full(78, -v)])
    assert abs(c.sum()) < 1e-12
    assert total(GEOMETRIC, c, 1.0) == pytest.approx(GEOMETRIC.bounds(144, 1.0)[0])


@given(st.integers(2, 4096))
@many
def test_theorem_2_spreads_at_p_2_have_closed_forms(width):
    assert PreNormaliser("mad").spread(width) == pytest.approx(width / 2)
    assert PreNormaliser("max").spread(width) == pytest.approx(width - 1)
    assert PreNormaliser("geometric").spread(width) == pytest.approx((1 + math.sqrt(width)) / 2)
    assert PreNormaliser("geometric", power_of_two=True).spread(width) == pytest.approx(2 * (1 + math.sqrt(width)))


def test_spread_at_width_512():
    spreads = [norm.spread(512) for norm in (GEOMETRIC, OPTIMAL_MAD, OPTIMAL_MAX)]
    assert spreads[0] <= 12 and spreads[1:] == pytest.approx([256, 511])


@many
@given(st.integers(2, 600), shapes, powers, st.booleans())
def test_theorem_3_the_geometric_scale_is_never_the_larger(width, shape, p, centred):
    c = row(width, shape, centred)
    assume(np.abs(c).max() > 1e-6)
    geometric, mad, largest = (scale(norm, c, 1.0, p, centred) for norm in (GEOMETRIC, OPTIMAL_MAD, OPTIMAL_MAX))
    assert geometric <= min(mad, largest) * (1 + 1e-9)


@many
@given(st.integers(1, 100), st.integers(0, 300), st.floats(1e-3, 1e3), powers)
def test_theorem_3_no_safe_scale_of_the_same_statistics_is_smaller(pairs, zeros, size, p):
    """Each ratio of max and MAD has a row that the geometric scale brings to exactly the limit."""
    c = size * np.concatenate([np.ones(pairs), -np.ones(pairs), np.zeros(zeros)])
    assert total(GEOMETRIC, c, 16384.0, p) == pytest.approx(16384.0)


@pytest.mark.slow_but("format2-16")
@pytest.mark.parametrize("format, block", [(FLOAT16, None), (FLOAT16, 1), (BFLOAT16, 16)])
@few
@given(st.integers(0, 2**31))
def test_theorem_4_a_sum_errs_by_its_depth(format, block, seed):
    count = 39
    arithmetic = Arithmetic(format, block=block)
    x = format.round(jnp.asarray(np.random.default_rng(seed).standard_normal((count, 8)), jnp.float32))
    exact = np.asarray(x, np.float64)
    bound = ((1 + format.unit_roundoff) ** arithmetic.depth(count) - 1) * np.abs(exact).sum(0)
    assert (np.abs(arithmetic.sum(x, axis=0) - exact.sum(0)) <= bound).all()


# --------------------------------------------------------- emulated arithmetic


@pytest.mark.slow_but("144-gradual", "511-flush")
@pytest.mark.parametrize("format", [FLOAT16, FLUSHING], ids=["gradual", "flush"])
@pytest.mark.parametrize("width", [144, 511])
def test_every_distribution_at_every_amplitude_is_within_5e_4(width, format):
    rows = 256
    stacked = np.concatenate([shape * random_peaks(rows) for shape in distributions(width, rows).values()])
    errors = row_errors(stacked, NormNumerics(Arithmetic(format), GEOMETRIC)).reshape(-1, rows)
    for name, of_distribution in zip(distributions(width, 1), errors, strict=True):
        result = summary(of_distribution)
        assert result["failed"] == 0 and result["rms_error"] <= 5e-4, (name, result)


def test_the_definition_fails_on_the_same_rows():
    x = np.concatenate([shape * random_peaks(32) for shape in distributions(144, 32).values()])
    failed = summary(row_errors(x, NormNumerics(Arithmetic(FLOAT16), NONE)))["failed"]
    assert 0.1 < failed < 0.9


@pytest.mark.slow
def test_theorem_5_the_plain_scales_fail_where_they_must():
    """sum y^2 of a +/- pair is D^2 / 2 > 65504 from D = 362 on; (D / 2)^2 overflows from D = 512 on a one-hot row."""
    for width, fails in ((352, [False, False]), (362, [True, False]), (512, [True, True])):
        x = np.concatenate([distributions(width, 1)[name] for name in ("+/- pair", "one-hot")]) * 50
        assert (row_errors(x, NormNumerics(Arithmetic(FLOAT16), PLAIN_MAD)) > 0.01).tolist() == fails
    assert (row_errors(x, NormNumerics(Arithmetic(FLOAT16), OPTIMAL_MAD)) < 2e-3).all()
    # The statistics themselves overflow: |x| = 3e4 adds up to more than 65504.
    gaussian = distributions(144, 16)["Gaussian"] * 3e4
    assert (row_errors(gaussian, NormNumerics(Arithmetic(FLOAT16), PLAIN_MAD)) > 0.01).any()


@pytest.mark.parametrize(
    "width, arithmetic, norm",
    [
        (17, Arithmetic(FLOAT16), GEOMETRIC),
        (2, Arithmetic(FLOAT16), OPTIMAL_MAX),
        (64, Arithmetic(FLOAT16, block=1), OPTIMAL_MAD),
        (9, Arithmetic(BFLOAT16, block=4), PreNormaliser(power_of_two=True)),
    ],
)
@few
@given(st.integers(0, 2**31))
@pytest.mark.slow_but("17-arithmetic0-norm0", "9-arithmetic3-norm3")
def test_theorem_6_the_error_is_within_the_bound(width, arithmetic, norm, seed):
    """The fast path, the definition in float32 (here 64), is what the emulated one computes up to this."""
    numerics = NormNumerics(arithmetic, norm)
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, (64, width)) + rng.uniform(-20, 20, (64, 1))  # the mean counts many deviations
    x *= random_peaks(64) / np.abs(x).max(-1, keepdims=True)
    x = np.asarray(arithmetic.round(jnp.asarray(x, jnp.float32)))
    offset = np.abs(x).mean(-1) / x.std(-1).clip(1e-30)
    fits = offset < 1 / ((arithmetic.depth(width) + 1) * arithmetic.format.unit_roundoff)
    assert (row_errors(x, numerics)[fits] <= numerics.error_bound(width)).all()


@pytest.mark.parametrize("norm", [GEOMETRIC, PLAIN_MAD], ids=["geometric", "plain MAD"])
@pytest.mark.slow_but("geometric")
def test_eps_counts_at_the_level_of_silence(norm):
    x = np.random.default_rng(0).standard_normal((64, 144)) * 1e-3  # variance 1e-6 under eps = 1e-5
    assert row_errors(x, NormNumerics(Arithmetic(FLOAT16), norm)).max() < 0.01


@pytest.mark.parametrize("format", [FLOAT16, FLUSHING, FLOAT8_E4M3FN], ids=["float16", "flush", "float8_e4m3fn"])
@pytest.mark.slow_but("flush", "float8_e4m3fn")
def test_constant_rows_become_the_bias(format):
    values = np.array([0, 6e-5, 1e-3, 0.1, 1 / 3, 7, 301.3, 440]) * (1 if format == FLOAT8_E4M3FN else 148)
    bias = format.round(jnp.linspace(-1, 1, 359))
    x = jnp.asarray(np.repeat(values[:, None], 359, axis=1), jnp.float32)
    numerics = NormNumerics(Arithmetic(format, block=1))
    result = jax.jit(lambda x: layer_norm(x, jnp.ones(359), bias, numerics=numerics))(x)
    np.testing.assert_array_equal(result, np.broadcast_to(bias, result.shape))


def test_a_large_mean_costs_nothing():
    """Centred once, the rounding of a mean of 1000 deviations would show in full."""
    x = np.random.default_rng(0).integers(-2, 3, (64, 144)) * 1.0 + 1000
    assert row_errors(x, NormNumerics()).max() < 1.5e-3


def test_a_power_of_two_changes_no_bit():
    x = jnp.asarray(distributions(33, 4)["Laplace"], jnp.float32)
    function = jax.jit(lambda x: layer_norm(x, jnp.ones(33), jnp.zeros(33), eps=1e-12, numerics=NormNumerics()))
    x = FLOAT16.round(x + 2)  # without subnormals
    np.testing.assert_array_equal(function(x), function(x * 2.0**12))


def test_scale_and_bias_are_rounded_operations():
    x, scales, bias = (jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate([(4, 17), (17,), (17,)]))
    half = Arithmetic(FLOAT16)
    function = jax.jit(lambda *arguments: layer_norm(*arguments, numerics=NormNumerics()))
    expected = half.add(half.multiply(function(x, jnp.ones(17), jnp.zeros(17)), half.round(scales)), half.round(bias))
    np.testing.assert_array_equal(function(x, scales, bias), expected)


@pytest.mark.slow_but("geometric")
@pytest.mark.parametrize("norm", [GEOMETRIC, OPTIMAL_MAD, OPTIMAL_MAX], ids=["geometric", "mad", "max"])
def test_rms_norm_agrees_with_its_definition(norm):
    shapes = [distributions(144, 16)[name] for name in ("Gaussian", "one-hot", "log-normal")]
    x = FLOAT16.round(jnp.asarray(np.concatenate(shapes) * np.tile(random_peaks(16), (3, 1)), jnp.float32))
    weights = FLOAT16.round(jnp.linspace(0.5, 2, 144))
    exact = np.asarray(x, np.float64)
    exact = exact / np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-6) * np.asarray(weights)
    np.testing.assert_allclose(rms_norm(x, weights), exact, rtol=1e-4, atol=1e-5)
    numerics = NormNumerics(Arithmetic(FLOAT16), norm)
    emulated = jax.jit(lambda x: rms_norm(x, weights, numerics=numerics))(x)
    errors = np.linalg.norm(emulated - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert errors.max() < NormNumerics().error_bound(144)


def test_a_static_scale_holds_for_the_rows_it_was_made_for():
    x = distributions(144, 32)["Gaussian"] * 2000
    norms = np.linalg.norm(x, axis=-1)
    numerics = NormNumerics(Arithmetic(FLOAT16), static(norms.max(), NormNumerics().limit))
    assert row_errors(x, numerics).max() < 2e-3
    assert row_errors(x * 32, numerics).max() > 0.01  # the guarantee is conditional
    assert summary(row_errors(x, NormNumerics(Arithmetic(FLOAT16), NONE)))["failed"] == 1


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="surrogate='l2' is not one of none, max, mad, geometric"):
        PreNormaliser("l2")
    with pytest.raises(ValueError, match=r"static=3.0 is not a power of two"):
        PreNormaliser("none", static=3.0)
    ones = jnp.ones(8)
    with pytest.raises(ValueError, match="low precision needs a positive one"):
        layer_norm(ones, ones, ones, eps=0.0, numerics=NormNumerics())
    with pytest.raises(ValueError, match="the term of eps=1e-05 overflows"):
        layer_norm(ones, ones, ones, numerics=NormNumerics(Arithmetic(FLOAT8_E4M3FN), static(1e-6, 16.0)))


@pytest.mark.slow
def test_orders_rank_as_their_depths():
    errors = {}
    x = distributions(512, 32)["Gaussian"]
    for block in (None, 32, 1):
        errors[block] = summary(row_errors(x, NormNumerics(Arithmetic(FLOAT16, block=block))))["rms_error"]
    assert errors[None] < errors[32] * 1.2 and 2 * errors[32] < errors[1]
    depths = [Arithmetic(FLOAT16, block=block).depth(512) for block in (None, 32, 1)]
    assert depths == [9, 20, 511] and all(a < b for a, b in itertools.pairwise(depths))
