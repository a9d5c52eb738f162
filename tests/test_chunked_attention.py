"""One suite for every implementation of attention: the kernels in the interpreters of their back ends."""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import autotune
from kernels.chunked_attention import chunk_rows, chunked_attention, mosaic_gpu, mosaic_tpu, xla
from kernels.chunked_attention.reference import Positions
from kernels.chunked_attention.shapes import SHAPES, Shape
from kernels.device import interpreted
from kernels.implementation import Unsupported
from kernels.lut_softmax import BoundedExp, Exp, Reciprocal, SoftmaxTables, softmax
from tests.implementations import (
    IMPLEMENTATIONS,
    KERNELS,
    annotations_ignored,
    array_sizes,
    lower,
    normal,
    operations_on,
    races_found,
    roundings,
    running,
    usual,
)

every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
NAMES = "output", "query", "key", "value", "relative_bias"
kernels = pytest.mark.parametrize("implementation", KERNELS)
few = settings(max_examples=4, derandomize=True)
FORMATS = [("xla", f) for f in ("float32", "bfloat16", "float16")]
FORMATS += [("mosaic_gpu", f) for f in ("bfloat16", "float16")] + [("mosaic_tpu", f) for f in ("float32", "bfloat16")]


def output_and_gradients(function, arguments):
    """The output, and the gradients of query, key, value and relative_bias for a random cotangent; all in float32."""
    differentiated, rows = arguments[:4], arguments[4:]

    @jax.jit
    def run(*differentiated):
        out, transpose = jax.vjp(lambda *a: function(*a, *rows), *differentiated)
        return out, *transpose(normal(9, *out.shape).astype(out.dtype))

    return [np.asarray(x, np.float32) for x in run(*differentiated)]


@functools.cache
def expected(shape, format):
    """Computes the reference in float32, of inputs in a narrower format."""
    arguments = shape.arguments(jax.random.key(0), format)
    wide = [x.astype(jnp.float32) for x in arguments[:4]]
    return output_and_gradients(lambda *a: chunked_attention(*a, implementation="reference"), [*wide, *arguments[4:]])


def assert_agrees(implementation, shape, format, chunks=None, **options):
    arguments = shape.arguments(jax.random.key(0), format)
    with interpreted(implementation, **options) if implementation in KERNELS else contextlib.nullcontext():
        function = functools.partial(chunked_attention, chunks=chunks, implementation=implementation)
        results = output_and_gradients(function, arguments)
    for name, mine, right in zip(NAMES, results, expected(shape, format), strict=True):
        largest = np.abs(right).max()
        np.testing.assert_allclose(mine, right, atol=2 * roundings(format) * largest, err_msg=name)


# ----------------------------------------------------------------- the definition


def test_attention_is_its_formula_and_an_empty_range_gives_zeros():
    queries, keys, heads, dim = 4, 7, 2, 3
    query, key, value = (normal(seed, 1, n, heads, dim) for seed, n in enumerate((queries, keys, keys)))
    bias = normal(3, heads, 5)
    start, end = np.array([[0, 2, 3, 1]]), np.array([[5, 7, 3, 2]])  # the third sees nothing
    result = np.asarray(chunked_attention(query, key, value, bias, jnp.asarray(start), jnp.asarray(end)))
    query, key, value, bias = map(np.asarray, (query, key, value, bias))
    for i, h in np.ndindex(queries, heads):
        seen = np.arange(start[0, i], end[0, i])
        distance = np.clip(keys - queries + i - seen, -2, 2)
        scores = key[0, seen, h] @ query[0, i, h] + bias[h, distance + 2]
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(result[0, i, h], weights @ value[0, seen, h], atol=1e-6)
    assert (result[0, 2] == 0).all()


def test_the_gradients_of_the_definition_are_numerical_with_rows_that_see_nothing():
    shape = (1, 5, 1, 2)
    start, end = chunk_rows(5, jnp.array([3]), 2, 1)
    arguments = normal(0, *shape), normal(1, *shape), normal(2, *shape), normal(3, 1, 3)
    weights, attend = normal(9, *shape), functools.partial(chunked_attention, implementation="reference")
    loss = jax.jit(lambda q, k, v, b: jnp.sum(weights * attend(q, k, v, b, start, end)))
    gradient = jax.jit(jax.grad(loss, range(4)))(*arguments)
    norm = math.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in gradient))
    above, below = ([x + step / norm * g for x, g in zip(arguments, gradient, strict=True)] for step in (0.02, -0.02))
    np.testing.assert_allclose((loss(*above) - loss(*below)) / 0.04, norm, rtol=1e-2)


# ------------------------------------------------------------ every implementation


@pytest.mark.slow_but("xla-float32", "mosaic_gpu-float16")
@pytest.mark.parametrize("implementation, format", FORMATS)
def test_output_and_gradients_are_the_references_in_every_format(implementation, format):
    """Odd sizes; chunks, where the last queries of an utterance see nothing, or full context and a bias as far."""
    frames = 69 if implementation == "mosaic_gpu" else 133  # two blocks of the kernel, the second one not full
    if format == "bfloat16":
        assert_agrees(implementation, Shape(1, frames, frames + 9, 1, 8, frames + 8, 0, -1), format)
    else:
        assert_agrees(implementation, Shape(2, frames, frames, 1, 12, 20, 16, 2), format, chunks=(16, 2))


@pytest.mark.slow_but("mosaic_tpu")
@every
def test_a_stream_attends_to_its_past_and_no_two_accesses_race(implementation):
    shape = SHAPES["stream_words"]._replace(heads=1)
    assert_agrees(implementation, shape, usual(implementation), detect_races=True)
    assert implementation not in KERNELS or not races_found(implementation)


@pytest.mark.slow_but("shape0-banded", "shape1-looped")
@pytest.mark.parametrize("variant", [xla.banded, xla.looped])
@pytest.mark.parametrize(
    "shape",
    [Shape(2, 300, 300, 2, 8, 6, 16, 4), Shape(1, 290, 610, 1, 4, 700, 10, 3), Shape(1, 130, 130, 1, 4, 3, 64, 0)],
)
def test_each_variant_in_plain_jax_is_the_reference(variant, shape):
    limits = [shape.chunks] if variant is xla.banded else []
    arguments = shape.arguments(jax.random.key(0))

    def run(query, key, value, bias, *rows):
        return variant(query, key, value, Positions(bias), *rows, softmax, *limits)

    results = output_and_gradients(run, arguments)
    for mine, right in zip(results, expected(shape, "float32"), strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "implementation, choice",
    [("mosaic_gpu", mosaic_gpu.Pipeline(steps_ahead=3)), ("mosaic_tpu", mosaic_tpu.BlockSize(256))],
)
def test_a_choice_that_was_tuned_is_taken_and_changes_no_result(implementation, choice):
    shape, format = Shape(2, 150, 150, 1, 8, 20, 16, 2), usual(implementation)
    arguments = shape.arguments(jax.random.key(0), format)

    def program():
        with running(implementation):
            return str(jax.make_jaxpr(training_step(implementation, shape))(*arguments))

    with autotune.trying(choice):
        assert_agrees(implementation, shape, format)
        chosen = program()
    assert chosen != program()


# The relative errors of exp and of the reciprocal: half a step of an interpolated table squared, or of a nearest one.
TABLES = {
    "exponent": (SoftmaxTables(), 2**-17, 2**-16),
    "bounded": (SoftmaxTables(exp=BoundedExp()), 2**-11, 2**-16),
    "nearest": (SoftmaxTables(exp=Exp(2**-5, False), reciprocal=Reciprocal(2**-5, False)), 2**-5.9, 2**-5.9),
}


@pytest.mark.slow_but("nearest-mosaic_gpu")
@kernels
@pytest.mark.parametrize("tables", TABLES)
def test_with_tables_it_is_the_definition_with_the_same_tables_within_the_bound(implementation, tables):
    """Maxima below the window, in it and above it, that move between them from one of three blocks to the next."""
    softmax, exp_error, reciprocal_error = TABLES[tables]
    keys, format = 150 if implementation == "mosaic_gpu" else 300, usual(implementation)
    query, key, value, bias, start, end = Shape(1, 24, keys, 2, 8, 3, 0, -1).arguments(jax.random.key(5), format)
    slope = jnp.linspace(0.3, 2.5, keys)[:, None, None] * jnp.array([1.0, -1.0])[:, None]  # a head rises, one falls
    key = key.at[..., :1].set(slope.astype(format))
    query = (query * 0.5).at[..., :1].set(jnp.linspace(-12, 16, 24)[:, None, None].astype(format))
    start, end = start.at[0, 3].set(9), end.at[0, 3].set(9)  # sees nothing
    attend = functools.partial(chunked_attention, query, key, value, bias, start, end, softmax=softmax)
    with running(implementation):
        got = np.asarray(jax.jit(functools.partial(attend, implementation=implementation))(), np.float32)
    expected = np.asarray(attend(implementation="reference"), np.float32)
    blocks = 3
    bound = 2 * (2 * blocks * exp_error / 4 + reciprocal_error) + roundings(format)  # of sum p |v|, p (1 - p) <= 1/4
    np.testing.assert_allclose(got, expected, atol=bound * float(jnp.abs(value.astype(jnp.float32)).max()))
    assert (got[0, 3] == 0).all() and np.isfinite(got).all()


@pytest.mark.slow
@kernels
def test_what_no_query_sees_is_exactly_zero_with_tables(implementation):
    query, key, value, bias, start, end = Shape(1, 40, 150, 1, 4, 3, 0, -1).arguments(
        jax.random.key(1), usual(implementation)
    )
    start, end = start + 20, jnp.maximum(end - 30, 0)
    hidden = ((jnp.arange(150) < 20) | (jnp.arange(150) >= 120))[:, None, None]
    with running(implementation):
        attend = functools.partial(chunked_attention, softmax=SoftmaxTables(), implementation=implementation)
        plain, rubbish = (attend(query, key, jnp.where(hidden, x, value), bias, start, end) for x in (0.0, 30_000.0))
    np.testing.assert_array_equal(np.asarray(plain, np.float32), np.asarray(rubbish, np.float32))


@functools.cache
def any_rows(implementation):
    """A function of rows and of what keys and values hold where no query looks, compiled once."""
    query, key, value, bias, _, _ = Shape(1, 70, 130, 1, 4, 5, 0, -1).arguments(
        jax.random.key(1), usual(implementation)
    )

    def run(name, start, end, rubbish):
        keys = jnp.arange(130)
        seen = jnp.any((start[..., None] <= keys) & (keys < end[..., None]), axis=1)[..., None, None]
        return chunked_attention(
            query, jnp.where(seen, key, rubbish), jnp.where(seen, value, rubbish), bias, start, end, implementation=name
        )

    return jax.jit(run, static_argnums=0)


@every
@few
@given(
    starts=st.lists(st.integers(-40, 170), min_size=70, max_size=70),
    lengths=st.lists(st.sampled_from([0, 1, 7, 60, 130]), min_size=70, max_size=70),
)
@pytest.mark.slow_but("xla", "mosaic_gpu")
def test_any_rows_and_what_none_of_them_sees_does_not_matter(implementation, starts, lengths):
    """Rows that reach past the keys on either side as well."""
    start = jnp.asarray(starts, jnp.int32)[None]
    end = start + jnp.asarray(lengths, jnp.int32)
    run = any_rows(implementation)
    with running(implementation):
        result = np.asarray(run(implementation, start, end, 30_000.0), np.float32)
    start, end = jnp.clip(start, 0, 130), jnp.clip(end, 0, 130)
    right = np.asarray(run("reference", start, end, 0.0), np.float32)
    np.testing.assert_allclose(result, right, atol=2 * roundings(usual(implementation)) * max(1, np.abs(right).max()))
    assert (result[0, np.asarray(start >= end)[0]] == 0).all()


@pytest.mark.slow_but("xla")
@every
def test_rows_may_be_traced_and_an_axis_mapped(implementation):
    """Two values of one compiled function; under vmap, with a gradient of the shared bias for each element."""
    shape = Shape(1, 70, 70, 1, 4, 5, 0, -1)
    query, key, value, bias, _, _ = shape.arguments(jax.random.key(2), usual(implementation))
    rows = [chunk_rows(70, jnp.array([length]), jnp.int32(size), 1) for size, length in ((8, 70), (30, 50))]

    def gradients(name):
        def loss(bias, query, start, end):
            out = chunked_attention(query, key, value, bias, start, end, implementation=name)
            return jnp.sum(out.astype(jnp.float32) ** 2)

        mapped = jax.vmap(jax.grad(loss, (0, 1)), in_axes=(None, 0, 0, 0))
        queries = jnp.stack([query, -query])
        return jax.jit(mapped)(bias, queries, *(jnp.stack(row) for row in zip(*rows, strict=True)))

    with running(implementation):
        mine = gradients(implementation)
    for x, right in zip(mine, gradients("reference"), strict=True):
        right = np.asarray(right, np.float32)
        np.testing.assert_allclose(x, right, atol=4 * roundings(usual(implementation)) * np.abs(right).max())


@pytest.mark.slow
@kernels
def test_one_bias_for_all_distances_has_no_gradient(implementation):
    arguments = Shape(1, 20, 20, 1, 8, 0, 0, -1).arguments(jax.random.key(0), usual(implementation))
    with running(implementation):
        attend = functools.partial(chunked_attention, implementation=implementation)
        *_, gradient = output_and_gradients(attend, arguments)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-4)


@pytest.mark.parametrize("chunk_size", [16, 0])
def test_rows_that_reach_past_the_keys_are_cut_off_in_every_variant_of_plain_jax(chunk_size):
    shape = Shape(1, 300, 300, 1, 4, 5, chunk_size, 4)
    query, key, value, bias, _, _ = shape.arguments(jax.random.key(4))
    rows = chunk_rows(300, jnp.array([300]), chunk_size, 4)
    expected = chunked_attention(query, key, value, bias, *rows, implementation="reference")
    rows = jnp.where(rows[0] == 0, -7, rows[0]), jnp.where(rows[1] == 300, 317, rows[1])
    for implementation in ("reference", "xla"):
        attend = functools.partial(chunked_attention, chunks=shape.chunks, implementation=implementation)
        np.testing.assert_allclose(attend(query, key, value, bias, *rows), expected, atol=1e-5)


@every
@pytest.mark.parametrize("batch, queries, keys", [(0, 4, 4), (2, 0, 0), (2, 0, 5)])
def test_nothing_attends_to_nothing(implementation, batch, queries, keys):
    shape = Shape(batch, queries, keys, 1, 4, 2, 2, 1)
    arrays = shape.arguments(jax.random.key(0), usual(implementation))
    with running(implementation):
        out, *gradients = output_and_gradients(
            functools.partial(chunked_attention, chunks=shape.chunks, implementation=implementation), arrays
        )
    assert out.shape == (batch, queries, 1, 4)
    for array, gradient in zip(arrays, gradients, strict=False):
        np.testing.assert_array_equal(gradient, np.zeros(array.shape))


def test_chunks_limit_what_rows_allow():
    arguments = Shape(1, 40, 40, 1, 4, 5, 8, 1).arguments(jax.random.key(3))
    limited = chunked_attention(*arguments)
    everything = [*arguments[:4], jnp.zeros((1, 40), jnp.int32), jnp.full((1, 40), 40)]
    for implementation in ("reference", "xla"):
        result = chunked_attention(*everything, chunks=(8, 1), implementation=implementation)
        np.testing.assert_allclose(result, limited, atol=1e-6)


# ------------------------------------------------------------------ without a device


def training_step(implementation, shape):
    """A sum of outputs and its gradients."""

    def loss(query, key, value, bias, start, end):
        attend = functools.partial(chunked_attention, chunks=shape.chunks, implementation=implementation)
        return jnp.sum(attend(query, key, value, bias, start, end).astype(jnp.float32))

    return jax.value_and_grad(loss, range(4))


@pytest.mark.slow_but("train_medium-mosaic_gpu", "stream_words-mosaic_tpu")
@kernels
@pytest.mark.parametrize("name", ["stream_words", "train_medium", "train_medium_full", "long_16384_16"])
def test_forward_and_backward_lower_for_the_device(implementation, name):
    shape, format = SHAPES[name], "float32" if implementation == "mosaic_tpu" else "bfloat16"
    arguments = jax.eval_shape(functools.partial(shape.arguments, dtype=format), jax.random.key(0))
    calls = lower(implementation, training_step(implementation, shape), *arguments).count("custom_call @")
    assert calls >= 3


@kernels
@pytest.mark.parametrize("tables", TABLES)
def test_with_tables_it_lowers_for_the_device(implementation, tables):
    shape, format = SHAPES["train_words"], "float32" if implementation == "mosaic_tpu" else "bfloat16"
    arguments = jax.eval_shape(functools.partial(shape.arguments, dtype=format), jax.random.key(0))
    attend = functools.partial(chunked_attention, softmax=TABLES[tables][0], implementation=implementation)
    assert lower(implementation, attend, *arguments).count("custom_call @") >= 1


@pytest.mark.parametrize("implementation, chunk_size", [("xla", 16), ("xla", 0), ("mosaic_gpu", 16), ("mosaic_tpu", 0)])
def test_memory_of_a_training_step_is_linear_in_the_length(implementation, chunk_size):
    def largest(frames):
        shape = Shape(1, frames, frames, 2, 16, 64, chunk_size, 4 if chunk_size else -1)
        arguments = jax.eval_shape(functools.partial(shape.arguments, dtype="bfloat16"), jax.random.key(0))
        with running(implementation):
            return max(array_sizes(jax.make_jaxpr(training_step(implementation, shape))(*arguments).jaxpr))

    assert largest(16_384) <= 4.1 * largest(4096) < 2 * 4096**2


@pytest.mark.parametrize("frames", [256, 200])
def test_the_gpu_kernels_leave_no_pass_over_a_tensor_to_xla(frames):
    """Neither forward nor backward, whether or not the last block is full. Delta comes from the kernels too."""

    def both(cotangent, *arguments):
        out, transpose = jax.vjp(functools.partial(chunked_attention, implementation="mosaic_gpu"), *arguments)
        return out, transpose(cotangent)[:4]

    shape = Shape(2, frames, frames, 2, 64, 20, 16, 2)
    query, *others = jax.eval_shape(functools.partial(shape.arguments, dtype="bfloat16"), jax.random.key(0))
    assert operations_on(query.size, lower("mosaic_gpu", both, query, query, *others)) == {"custom_call"}


# ----------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "change, message",
    [
        ({"relative_bias": (1, 4)}, r"2R \+ 1"),
        ({"relative_bias": (2, 5)}, r"\(1 heads, 2R \+ 1\)"),
        ({"key": (1, 3, 1, 2), "value": (1, 3, 1, 2)}, "4 queries but 3 keys"),
        ({"query": (4, 1, 2)}, "key of shape .* has 4 axes, not 3"),
        ({"value": (1, 5, 1, 2)}, "do not fit query"),
        ({"key_end": (1, 3)}, "key_end of shape .* must be .1, 4."),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    names = dict.fromkeys(("query", "key", "value"), (1, 4, 1, 2)) | {"relative_bias": (1, 5)}
    shapes = names | dict.fromkeys(("key_start", "key_end"), (1, 4)) | change
    arrays = [jnp.zeros(shape, jnp.int32 if "key_" in name else None) for name, shape in shapes.items()]
    with annotations_ignored(), pytest.raises(ValueError, match=message):
        chunked_attention(*arrays)


def test_what_a_kernel_cannot_do_is_an_error_that_names_the_alternative():
    def run(implementation, format, head_dim=4, **keywords):
        arguments = Shape(1, 8, 8, 1, head_dim, 2, 0, -1).arguments(jax.random.key(0), format)
        with running(implementation) if keywords.pop("here", True) else running("xla"):
            chunked_attention(*arguments, implementation=implementation, **keywords)

    for arguments, keywords, message in [
        (("mosaic_gpu", "float32"), {}, "query is float32.*'xla'"),
        (("mosaic_gpu", "bfloat16", 160), {}, "head_dim=160 is more than 128.*'xla'"),
        (("mosaic_tpu", "float16"), {}, "query is float16.*'xla'"),
        (("mosaic_tpu", "float32"), {"softmax": lambda s, m: softmax(s, m)}, "softmax=.*nor SoftmaxTables.*'xla'"),
        (("mosaic_gpu", "float16"), {"softmax": SoftmaxTables(largest=1e9)}, r"1e\+09, and float16 ends at 65504"),
        (("mosaic_gpu", "bfloat16"), {"here": False}, "needs an NVIDIA GPU"),
    ]:
        with pytest.raises(Unsupported, match=message):
            run(*arguments, **keywords)
    with pytest.raises(ValueError, match=r"query is float8_e4m3fn.*float32, bfloat16, float16"):
        run("xla", "float8_e4m3fn")
    with pytest.raises(ValueError, match=r"chunks=\(0, 1\)"):
        run("xla", "float32", chunks=(0, 1))


def test_traced_chunks_are_named():
    arguments = Shape(1, 8, 8, 1, 4, 2, 0, -1).arguments(jax.random.key(0))
    named = pytest.raises(ValueError, match=r"chunks=.* must be integers known before tracing: give None")
    with annotations_ignored(), named:
        jax.jit(lambda size: chunked_attention(*arguments, chunks=(size, 1)))(2)
