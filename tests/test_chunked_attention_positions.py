"""Transformer-XL's term of positions in every implementation of attention: p_i . r[i - j]."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from kernels.chunked_attention import chunked_attention, xla
from kernels.chunked_attention.reference import Positions
from kernels.chunked_attention.shapes import SHAPES, Shape
from kernels.device import interpreted
from kernels.lut_softmax import softmax
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
kernels = pytest.mark.parametrize("implementation", KERNELS)
NAMES = "output", "query", "key", "value", "position_query", "position_key", "relative_bias"


def draw(shape, format="float32"):
    """Query, key, value, position_query, position_key and relative_bias; and the rows."""
    query, key, value, bias, *rows = shape.arguments(jax.random.key(0), format)
    positions = shape.position_arguments(jax.random.key(1), format)
    return (query, key, value, *positions.values(), bias), rows


def attend(rows, query, key, value, position_query, position_key, relative_bias=None, **options):
    return chunked_attention(
        query,
        key,
        value,
        relative_bias,
        *rows,
        position_query=position_query,
        position_key=position_key,
        **options,
    )


def result_and_gradients(function, arrays):
    """The output and the gradients of all arrays for a random cotangent, in float32."""

    @jax.jit
    def run(*arrays):
        out, transpose = jax.vjp(function, *arrays)
        return out, *transpose(normal(9, *out.shape).astype(out.dtype))

    return [np.asarray(x, np.float32) for x in run(*arrays)]


def assert_agrees(got, expected, tolerance):
    for name, mine, right in zip(NAMES, got, expected, strict=True):
        np.testing.assert_allclose(mine, right, atol=tolerance * np.abs(right).max(), err_msg=name)


@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_is_its_formula(with_bias):
    shape = Shape(1, 4, 7, 2, 3, 1, 0, -1)
    arrays, _ = draw(shape)
    query, key, value, p, r, bias = map(np.asarray, arrays)
    bias = bias * with_bias
    start, end = np.array([[0, 2, 1, 3]]), np.array([[5, 7, 4, 7]])
    out = attend((jnp.asarray(start), jnp.asarray(end)), *arrays[: 6 if with_bias else 5])
    for i, h in np.ndindex(4, 2):
        seen = np.arange(start[0, i], end[0, i])
        distance = 3 + i - seen  # the queries are the last of seven keys
        scores = key[0, seen, h] @ query[0, i, h] + r[6 - distance, h] @ p[0, i, h]
        weights = np.exp(scores + bias[h, np.clip(distance, -1, 1) + 1])
        np.testing.assert_allclose(out[0, i, h], weights / weights.sum() @ value[0, seen, h], atol=1e-6)


@pytest.mark.slow_but("xla", "chunks-mosaic_gpu")
@every
@pytest.mark.parametrize("context", ["chunks", "whole"])
def test_output_and_gradients_are_the_references(implementation, context):
    """Odd sizes, chunks known before tracing, or all keys; a bias beside it, and a query that sees nothing."""
    frames = 69 if implementation == "mosaic_gpu" else 133
    shape = Shape(2, frames, frames, 1, 12, 20, 16, 2) if context == "chunks" else Shape(1, frames, 150, 1, 8, 5, 0, -1)
    arrays, rows = draw(shape, usual(implementation))
    expected = result_and_gradients(
        functools.partial(attend, rows, implementation="reference"), [a.astype(jnp.float32) for a in arrays]
    )
    with running(implementation):
        function = functools.partial(attend, rows, chunks=shape.chunks, implementation=implementation)
        got = result_and_gradients(function, arrays)
    assert_agrees(got, expected, 4 * roundings(usual(implementation)))


@pytest.mark.slow_but("mosaic_gpu")
@kernels
def test_no_two_accesses_race_in_a_stream(implementation):
    arrays, rows = draw(SHAPES["stream_words"]._replace(heads=1), usual(implementation))
    with interpreted(implementation, detect_races=True):
        result_and_gradients(functools.partial(attend, rows, chunks=(16, 4), implementation=implementation), arrays)
    assert not races_found(implementation)


@pytest.mark.slow_but("shape0-banded", "shape1-looped")
@pytest.mark.parametrize("variant", [xla.banded, xla.looped])
@pytest.mark.parametrize("shape", [Shape(2, 300, 300, 2, 8, 6, 16, 4), Shape(1, 290, 610, 1, 4, 700, 10, 3)])
def test_each_variant_in_plain_jax_is_the_reference(variant, shape):
    arrays, rows = draw(shape)
    limits = [shape.chunks] if variant is xla.banded else []

    def run(query, key, value, position_query, position_key, bias):
        return variant(query, key, value, Positions(bias, position_query, position_key), *rows, softmax, *limits)

    expected = result_and_gradients(functools.partial(attend, rows, implementation="reference"), arrays)
    assert_agrees(result_and_gradients(run, arrays), expected, 1e-5)


@pytest.mark.slow_but("xla")
@every
def test_a_mapped_axis_is_part_of_the_batch_and_what_sees_nothing_may_be_nan(implementation):
    shape = Shape(2, 40, 40, 1, 8, 3, 8, 1)
    (query, key, value, p, r, _), (start, end) = draw(shape, usual(implementation))
    end = end.at[:, 7].set(0)
    hidden = (end <= start)[..., None, None]

    def loss(name, rubbish, p, r):
        p = jnp.where(hidden, rubbish, p)
        out = attend((start, end), query, key, value, p, r, None, chunks=shape.chunks, implementation=name)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    mapped = jax.vmap(jax.grad(loss, (2, 3)), in_axes=(None, None, 0, None))
    both = jnp.stack([p, -2 * p])
    expected = jax.jit(mapped, static_argnums=0)("reference", 0.0, both, r)
    with running(implementation):
        got = jax.jit(mapped, static_argnums=0)(implementation, jnp.nan, both, r)
    for mine, right in zip(got, expected, strict=True):
        right = np.asarray(right, np.float32)
        np.testing.assert_allclose(mine, right, atol=4 * roundings(usual(implementation)) * np.abs(right).max())


def training_step(implementation, shape, rows):
    def loss(*arrays):
        out = attend(rows, *arrays, chunks=shape.chunks, implementation=implementation)
        return jnp.sum(out.astype(jnp.float32))

    return jax.value_and_grad(loss, range(5))


@pytest.mark.slow_but("train_medium-mosaic_gpu", "stream_words-mosaic_tpu")
@kernels
@pytest.mark.parametrize("name", ["stream_words", "train_medium", "train_medium_full"])
def test_forward_and_backward_lower_for_the_device(implementation, name):
    shape, format = SHAPES[name], "float32" if implementation == "mosaic_tpu" else "bfloat16"
    arrays, rows = jax.eval_shape(lambda: draw(shape, format))
    program = lower(implementation, lambda rows, *a: training_step(implementation, shape, rows)(*a), rows, *arrays[:5])
    assert program.count("custom_call @") >= 3


def test_beside_the_gpu_kernels_stand_only_the_products_of_positions():
    shape = Shape(2, 256, 256, 2, 64, 20, 16, 2)

    def both(cotangent, rows, *arrays):
        function = functools.partial(attend, rows, chunks=(16, 2), implementation="mosaic_gpu")
        out, transpose = jax.vjp(function, *arrays)
        return out, transpose(cotangent)

    (query, *others, _), rows = jax.eval_shape(lambda: draw(shape, "bfloat16"))
    program = lower("mosaic_gpu", both, query, rows, query, *others)
    # The transposes put heads first: XLA makes them part of the products. The select is of rubbish where none looks.
    products = {"dot_general", "convert", "transpose", "broadcast_in_dim", "select", "constant"}
    assert operations_on(query.size, program) <= {"custom_call", *products}


@every
def test_memory_is_linear_in_the_length_with_chunks(implementation):
    def largest(frames):
        shape = Shape(1, frames, frames, 2, 16, 64, 16, 4)
        arrays, rows = jax.eval_shape(lambda: draw(shape, "bfloat16"))

        def step(rows, *arrays):
            return training_step(implementation, shape, rows)(*arrays)

        with running(implementation):
            return max(array_sizes(jax.make_jaxpr(step)(rows, *arrays[:5]).jaxpr))

    assert largest(8192) <= min(4.1 * largest(2048), 8192**2 / 4)


@kernels
def test_gradients_have_the_axes_of_shard_map(implementation):
    arrays, rows = draw(Shape(8, 20, 20, 1, 8, 3, 8, 1), usual(implementation))
    divided, whole = PartitionSpec("data"), PartitionSpec()
    specs = (divided,) * 4 + (whole, divided, divided)
    mesh = AbstractMesh((8,), ("data",), (AxisType.Auto,))

    def call(*arguments):
        *five, start, end = arguments
        return attend((start, end), *five, implementation=implementation)

    mapped = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=divided)
    gradient = jax.grad(lambda *a: jnp.sum(jnp.square(mapped(*a).astype(jnp.float32))), (3, 4))
    with running(implementation):
        shapes = jax.eval_shape(gradient, *arrays[:5], *rows)
    assert [a.shape for a in shapes] == [arrays[3].shape, arrays[4].shape]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"position_key": (6, 1, 2)}, r"position_key of float32 \(6, 1, 2\) must be of float32 \(7, 1\)"),
        ({"position_key": (7, 1, 3)}, r"\(1, 4, 1, 2\) and position_key \(7, 1, 3\) differ in size"),
        ({"position_query": (1, 3, 1, 2)}, r"position_query of float32 \(1, 3, 1, 2\) must be of float32 \(1, 4, 1\)"),
        ({"position_key": None}, "belong together"),
        ({"position_query": None}, "belong together"),
    ],
)
def test_terms_that_do_not_fit_are_named(change, message):
    query = jnp.zeros((1, 4, 1, 2))
    shapes = {"position_query": query.shape, "position_key": (7, 1, 2)} | change
    terms: dict[str, Any] = {name: None if shape is None else jnp.zeros(shape) for name, shape in shapes.items()}
    with annotations_ignored(), pytest.raises(ValueError, match=message):
        chunked_attention(query, query, query, **terms)


def test_products_of_positions_are_as_many_as_distances_within_chunks():
    """A training step at 2048 frames multiplies positions with the band alone."""
    shape = Shape(1, 2048, 2048, 1, 64, 0, 16, 4)
    arrays, rows = jax.eval_shape(lambda: draw(shape, "bfloat16"))
    with running("mosaic_gpu"):
        jaxpr = jax.make_jaxpr(lambda rows, *a: training_step("mosaic_gpu", shape, rows)(*a))(rows, *arrays[:5])
    band = math.ceil((16 * 5 - 1 + 63) / 64) + 1 + 1  # diagonals of blocks of 64, and one more
    assert max(array_sizes(jaxpr.jaxpr)) <= 2048 * 64 * (band + 1)
