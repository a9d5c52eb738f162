"""The emulator, bit for bit against NumPy and ml_dtypes doing the same operations in the same order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.emulator import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, FLOAT32, Arithmetic, Format

pytestmark = pytest.mark.usefixtures("optimised")

NARROW = [FLOAT16, BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2]
BYTES = [FLOAT8_E4M3FN, FLOAT8_E5M2]
few = settings(max_examples=6, derandomize=True)


def dtype(format):
    return np.dtype(format.name)


@functools.cache
def every_value(format):
    """All bit patterns of the format, NaNs too, as float32; float32's subnormals, which XLA flushes, left out."""
    bits = np.arange(2 ** (8 * dtype(format).itemsize), dtype=f"uint{8 * dtype(format).itemsize}")
    values = bits.view(dtype(format)).astype(np.float32)
    return values[~((values != 0) & (np.abs(values) < np.finfo(np.float32).smallest_normal))]


def flushed(rounded, format, exact):
    """Returns what ml_dtypes rounded, as float32; zero where the exact value is subnormal and gets flushed."""
    rounded = np.asarray(rounded).astype(np.float32)
    if not format.flush_to_zero and format != BFLOAT16:
        return rounded
    tiny = np.abs(exact) < format.smallest_normal * (1 - format.unit_roundoff / 2)  # beyond, it rounds to the normal
    return np.where(tiny, np.copysign(np.float32(0), rounded), rounded)


def assert_same(result, expected):
    """Equal bit for bit, except that any NaN equals any other."""
    result, expected = np.asarray(result, np.float32), np.asarray(expected, np.float32)
    np.testing.assert_array_equal(result, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(result[numbers]), np.signbit(expected[numbers]))


# -------------------------------------------------------------------- formats


def test_formats_know_their_limits():
    assert (FLOAT16.largest, FLOAT16.smallest_normal, FLOAT16.smallest) == (65504.0, 2.0**-14, 2.0**-24)
    assert (BFLOAT16.unit_roundoff, FLOAT8_E4M3FN.largest, FLOAT8_E5M2.largest) == (2.0**-8, 448.0, 57344.0)
    assert Format("float16", flush_to_zero=True).smallest == 2.0**-14
    with pytest.raises(ValueError, match="'fp16' is not one of float32, "):
        Format("fp16")


@pytest.mark.parametrize("format", NARROW, ids=lambda f: f.name)
def test_values_of_a_format_round_to_themselves(format):
    values = every_value(format)
    assert_same(jax.jit(format.round)(values), values)


@pytest.mark.parametrize("flush", [False, True], ids=["gradual", "flush"])
@pytest.mark.parametrize("format", NARROW, ids=lambda f: f.name)
def test_rounding_is_that_of_ml_dtypes(format, flush):
    """All values, the middles between neighbours (ties), both neighbours of the middles in float32, random values."""
    format = Format(format.name, flush)
    values = np.sort(every_value(format)[np.isfinite(every_value(format))])
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    overflow = format.largest * np.array([1, 1.0002, 1.0003, 1.001, 1.002, 1.03, 1.04, 1.07, 1.13, np.inf])
    random = np.random.default_rng(0)
    x = random.standard_normal(20_000) * 2.0 ** random.uniform(-30, 17, 20_000)
    neighbours = np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, -np.float32(np.inf))
    with np.errstate(over="ignore"):
        x = np.concatenate([values, middles, *neighbours, overflow, -overflow, x]).astype(np.float32)
        x = x[(x == 0) | (np.abs(x) >= np.finfo(np.float32).smallest_normal)]
        expected = flushed(x.astype(dtype(format)), format, x)
    assert_same(format.round(jnp.asarray(x)), expected)
    assert_same(jax.jit(format.round)(x), expected)


def test_rounding_survives_compilation_of_a_chain():
    """Each step of a chain is rounded, eagerly and compiled; unrounded, the sum would be 1.0009..."""
    chain = lambda x: FLOAT16.round(FLOAT16.round(x + 2.0**-12) + 2.0**-12)  # noqa: E731
    assert chain(jnp.float32(1)) == jax.jit(chain)(jnp.float32(1)) == 1.0


# ------------------------------------------------------------- operations

OPERATIONS = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("format", BYTES, ids=lambda f: f.name)
def test_operations_on_every_pair_of_bytes_are_correctly_rounded(format, operation):
    values = every_value(format).astype(np.float64)
    with np.errstate(all="ignore"):
        exact = OPERATIONS[operation](values[:, None], values)
        expected = exact.astype(dtype(format))  # float64 holds more than 2 p + 2 bits too
    a, b = jnp.asarray(values, jnp.float32)[:, None], jnp.asarray(values, jnp.float32)
    assert_same(jax.jit(getattr(Arithmetic(format), operation))(a, b), expected)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("format", [FLOAT16, Format("float16", True)], ids=["gradual", "flush"])
def test_float16_operations_are_numpys(format, operation):
    """Operands over the whole range, and pairs whose result is subnormal or near the largest."""
    rng = np.random.default_rng(1)
    a, b = (rng.choice(every_value(FLOAT16), 400_000) for _ in range(2))
    a, b = flushed(a, format, a), flushed(b, format, b)
    with np.errstate(all="ignore"):
        expected = OPERATIONS[operation](a.astype(np.float16), b.astype(np.float16))
        exact = OPERATIONS[operation](a.astype(np.float64), b.astype(np.float64))
    assert_same(
        getattr(Arithmetic(format), operation)(jnp.asarray(a), jnp.asarray(b)), flushed(expected, format, exact)
    )


@pytest.mark.parametrize("format", NARROW, ids=lambda f: f.name)
def test_roots_of_every_value_are_correctly_rounded(format):
    values = every_value(format)
    values = values[(values >= 0) & (values <= format.largest)]
    arithmetic = Arithmetic(format)
    with np.errstate(divide="ignore", over="ignore"):
        exact = np.sqrt(values.astype(np.float64))
        assert_same(arithmetic.sqrt(jnp.asarray(values)), flushed(exact.astype(dtype(format)), format, exact))
        assert_same(
            arithmetic.rsqrt(jnp.asarray(values)), flushed((1 / exact).astype(dtype(format)), format, 1 / exact)
        )


# ------------------------------------------------------------------------ sums


def rounded(x, format):
    with np.errstate(all="ignore"):
        return flushed(np.asarray(x, np.float32).astype(dtype(format)), format, x)


def tree(values, add):
    values = list(values)
    while len(values) > 1:
        half = (len(values) + 1) // 2
        middle = values[len(values) - half : half]
        values = [add(a, b) for a, b in zip(values[: len(values) - half], values[half:], strict=True)] + middle
    return values[0]


def ordered_sum(values, block, add):
    """The order that `Arithmetic` documents, element by element."""
    block = block or len(values)
    sums = [tree(values[start : start + block], add) for start in range(0, len(values), block)]
    return functools.reduce(add, sums)


@few
@given(
    st.sampled_from([*NARROW, Format("float16", True)]),
    st.sampled_from([1, 2, 7, 24, 39]),
    st.sampled_from([None, 1, 3, 8]),
    st.integers(0, 2**31),
    st.floats(-8, 12),
)
def test_sum_is_the_documented_order(format, count, block, seed, scale):
    x = rounded(np.random.default_rng(seed).standard_normal((count, 5)) * 2**scale, format)
    with np.errstate(all="ignore"):
        expected = ordered_sum(x, block, lambda a, b: rounded(a + b, format))
    arithmetic = Arithmetic(format, block=block)
    assert_same(arithmetic.sum(jnp.asarray(x), axis=0), expected)
    assert_same(jax.jit(functools.partial(arithmetic.sum, axis=-2, keepdims=True))(x), expected[None])


@pytest.mark.slow
@few
@given(
    st.sampled_from([FLOAT16, FLOAT8_E5M2]),
    st.sampled_from([(2, 13, 4), (1, 1, 1)]),
    st.sampled_from([None, 1, 4]),
    st.integers(0, 2**31),
)
def test_matmul_is_the_documented_order(format, shape, block, seed):
    rows, inner, columns = shape
    rng = np.random.default_rng(seed)
    a, b = (rounded(rng.standard_normal(s) * 4, format) for s in ((rows, inner), (inner, columns)))
    expected = ordered_sum(
        [rounded(a[:, k, None] * b[k], format) for k in range(inner)], block, lambda x, y: rounded(x + y, format)
    )
    arithmetic = Arithmetic(format, block=block)
    assert_same(arithmetic.matmul(jnp.asarray(a), jnp.asarray(b)), expected)
    batch = np.stack([a, -a])
    assert_same(jax.jit(arithmetic.matmul)(batch, np.stack([b, b])), np.stack([expected, -expected]))
    assert_same(jax.jit(arithmetic.matmul)(batch, b), np.stack([expected, -expected]))


@pytest.mark.slow
def test_matmul_in_tiles_is_the_same(monkeypatch):
    a, b = (FLOAT16.round(jax.random.normal(jax.random.key(k), shape)) for k, shape in ((0, (5, 3)), (1, (3, 5))))
    whole = Arithmetic(FLOAT16).matmul(a, b)
    monkeypatch.setattr("kernels.emulator.arithmetic._TILE", 30)  # two rows a tile, one left over
    assert_same(Arithmetic(FLOAT16).matmul(a, b), whole)


def test_narrow_accumulation_stagnates_and_overflows_and_wide_accumulation_does_not():
    ones = jnp.ones(4096)
    assert Arithmetic(FLOAT16, block=1).sum(ones) == 2048  # 2048 + 1 = 2048 in float16
    assert Arithmetic(FLOAT16).sum(ones) == Arithmetic(FLOAT16, FLOAT32, block=1).sum(ones) == 4096
    assert jnp.isinf(Arithmetic(FLOAT16).sum(20 * ones))
    assert Arithmetic(BFLOAT16, FLOAT32).sum(20 * ones) == 81920


def test_a_block_must_be_positive():
    with pytest.raises(ValueError, match="block=0"):
        Arithmetic(FLOAT16, block=0)
