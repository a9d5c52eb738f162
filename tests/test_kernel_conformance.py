"""Shapes and arguments that the tests of other projects' kernels take, against the formulas in float64 NumPy.

Norms and softmax as QuACK's tests have them (widths that are no powers of two, few and odd rows, up to 32,768 keys),
attention as tokamax's (grouped queries, values of another width, lengths, scale, any batch axes).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.chunked_attention import api, chunked_attention
from kernels.implementation import Unsupported
from kernels.layer_norm import layer_norm, mosaic_gpu, mosaic_tpu, rms_norm
from kernels.lut_softmax import mosaic_gpu as softmax_gpu
from kernels.lut_softmax import softmax
from tests.implementations import IMPLEMENTATIONS, roundings, running

every = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def draw(seed, *shape, format="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), format)


def result_and_gradients(implementation, function, *arrays):
    """And the cotangent of the result."""

    @jax.jit
    def run(*arrays):
        out, transpose = jax.vjp(function, *arrays)
        cotangent = draw(9, *out.shape, format=out.dtype)
        return out, *transpose(cotangent), cotangent

    with running(implementation):
        *results, cotangent = (wide(a) for a in run(*arrays))
    return results, cotangent


def wide(a):
    return np.asarray(a, np.float64)


def assert_close(got, expected, format, names, sums=1.0):
    """To a few roundings of the largest result, `sums` times as many where long sums are rounded on the way."""
    for name, mine, right in zip(names, got, expected, strict=True):
        assert mine.shape == right.shape, name
        atol = sums * roundings(format) * max(1.0, np.abs(right).max())
        np.testing.assert_allclose(mine, right, atol=atol, err_msg=name)


# ----------------------------------------------------------------------- norms


def norm(x, scale, bias, cotangent, eps, centred):
    c = x - x.mean(-1, keepdims=True) if centred else x
    factor = 1 / np.sqrt(np.square(c).mean(-1, keepdims=True) + eps)
    x_hat, g = c * factor, cotangent * scale
    inner = g - x_hat * (g * x_hat).mean(-1, keepdims=True)
    dx = factor * (inner - g.mean(-1, keepdims=True) if centred else inner)
    rows = tuple(range(x.ndim - 1))
    return x_hat * scale + bias, dx, (cotangent * x_hat).sum(rows), cotangent.sum(rows)


NORMS = [(1, 192), (37, 760), (2, 3, 1128), (3, 8192), (3, 64), (2, 1041), (7, 8), (3, 2048), (2, 6144)]


@pytest.mark.slow_but("shape0-xla", "shape3-mosaic_gpu", "shape4-mosaic_gpu")
@every
@pytest.mark.parametrize("shape", NORMS)
def test_norms_of_any_width(implementation, shape):
    """eps = 0, where rows that fill a tile up would be zero over zero; RMSNorm of every second shape."""
    centred, format = len(shape) == 2 and shape[0] != 2, "bfloat16" if shape[-1] % 16 == 0 else "float32"
    x, scale, bias = draw(0, *shape, format=format), draw(1, shape[-1]), draw(2, shape[-1])
    options = {"eps": 0.0, "implementation": implementation}
    if centred:
        got, cotangent = result_and_gradients(implementation, functools.partial(layer_norm, **options), x, scale, bias)
    else:
        got, cotangent = result_and_gradients(implementation, functools.partial(rms_norm, **options), x, scale)
    expected = norm(wide(x), wide(scale), wide(bias) if centred else 0.0, cotangent, 0.0, centred)
    assert_close(got, expected[: len(got)], format, ("y", "x", "scale", "bias")[: len(got)])


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_every_width_has_its_threads(format):
    """Norms of any width to 16,384, softmax to 32,768 keys: vectors lie inside a row or outside, and few lanes idle."""
    for rows, most in ((mosaic_gpu.ROWS, 16_384), (softmax_gpu.ROWS, 32_768)):
        for width in (*range(1, 2049, 7), *range(2048, most, 488), most):
            threads = rows.heuristic(width, format)
            assert width % threads.vector == 0 and threads.vector * jnp.dtype(format).itemsize <= 16
            assert threads.each(width) <= rows.per_lane and threads.rows % threads.tile_rows == 0
            assert width <= threads.filled(width) < width + threads.lanes * threads.vector * threads.parts
            assert threads.filled(width) <= max(8, 2 * width)
            if width % 512 == 0:
                assert threads.filled(width) == width
    assert mosaic_gpu.ROWS.heuristic(144, "bfloat16").vector == 8  # 16 bytes at once, where it was one element
    for width in range(8, 8193, 8):
        assert mosaic_tpu.ROWS.heuristic(width).rows >= 32


# --------------------------------------------------------------------- softmax


@pytest.mark.slow_but("shape1-mask1-mosaic_gpu")
@every
@pytest.mark.parametrize(
    "shape, mask",
    [
        ((199, 200), None),
        ((2, 4, 9, 130), (2, 1, 1, 130)),  # a length for each sequence
        ((2, 32_768), (2, 32_768)),
        ((2, 3, 5, 256), (2, 1, 5, 256)),  # one mask for all heads
        ((3, 2, 2, 72), (1, 2, 1, 72)),  # heads on both sides of what is shared
        ((1, 1128), (1128,)),
        ((2, 2, 3, 4096), (1, 1, 3, 4096)),
    ],
)
def test_softmax_of_any_keys_under_any_mask(implementation, shape, mask):
    if implementation == "mosaic_tpu" and shape[-1] > 16_384:
        return
    scores = draw(0, *shape) * 4
    seen = None if mask is None else jnp.asarray(np.random.default_rng(1).random(mask) < 0.6)
    (p, ds), cotangent = result_and_gradients(
        implementation, lambda s: softmax(s, seen, implementation=implementation), scores
    )
    shown = np.broadcast_to(True if seen is None else np.asarray(seen), shape)
    weights = np.where(shown, np.exp(wide(scores) - wide(scores).max(-1, keepdims=True)), 0.0)
    expected = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    gradient = expected * (cotangent - (expected * cotangent).sum(-1, keepdims=True))
    assert_close((p, ds), (expected, gradient), "float32", ("p", "scores"))
    assert (p[~shown] == 0).all()


@pytest.mark.slow_but("mosaic_gpu")
@every
def test_integer_masks_are_true_where_they_are_not_zero(implementation):
    scores, mask = draw(0, 8, 32), jnp.tile(jnp.array([256, 0, -3, 0]), (8, 8))
    with running(implementation):
        p = np.asarray(jax.jit(functools.partial(softmax, implementation=implementation))(scores, mask))
        assert (p[:, 1::2] == 0).all() and (p[:, ::2] > 0).all()
        last = functools.partial(softmax, mask=mask, axis=1, implementation=implementation)  # the last by its number
        assert jax.eval_shape(last, scores).shape == (8, 32)
        named = functools.partial(layer_norm, scale=None, bias=None, axis=1, implementation=implementation)
        assert jax.eval_shape(named, scores).shape == (8, 32)


# ------------------------------------------------------------------- attention


def attention(q, k, v, do, seen, scale):
    """Gradients of q, k and v for heads that share keys; `seen` (batch, queries, keys)."""
    shared = q.shape[2] // k.shape[2]
    keys, values = (np.repeat(a, shared, axis=2) for a in (k, v))
    scores = np.where(seen[:, None], np.einsum("bqhd,bkhd->bhqk", q, keys) * scale, -np.inf)
    p = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e30))
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-300)
    dp = np.einsum("bqhd,bkhd->bhqk", do, values)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    dk, dv = np.einsum("bhqk,bqhd->bkhd", ds, q), np.einsum("bhqk,bqhd->bkhd", p, do)
    dk, dv = (a.reshape(*k.shape[:3], shared, -1).sum(3) for a in (dk, dv))
    return np.einsum("bhqk,bkhd->bqhd", p, values), np.einsum("bhqk,bkhd->bqhd", ds, keys), dk, dv


ATTENTION = [  # batch axes, queries, keys, heads, of keys, head size, of values
    ((), 24, 24, 4, 1, 16, 16),  # one head of keys for all, no batch
    ((2, 2), 9, 21, 4, 2, 8, 24),  # grouped; several batch axes; fewer queries; another width of values
    ((1,), 70, 70, 2, 2, 128, 64),
    ((2,), 16, 40, 2, 2, 256, 256),
]


@pytest.mark.slow_but("case0-xla", "case3-mosaic_gpu")
@pytest.mark.parametrize(
    "case, implementation",
    [(0, "xla"), *((number, implementation) for number in (1, 3) for implementation in IMPLEMENTATIONS), (2, "xla")],
    ids=lambda value: f"case{value}" if isinstance(value, int) else value,
)
def test_attention_of_other_projects_arguments(case, implementation):
    """Lengths, a scale and no bias; what nobody sees is NaN, and reaches neither the result nor a gradient."""
    batch, queries, keys, heads, kv_heads, size, value_size = ATTENTION[case]
    format = "bfloat16" if implementation == "mosaic_gpu" else "float32"
    shapes = (queries, heads, size), (keys, kv_heads, size), (keys, kv_heads, value_size)
    rng, hidden = np.random.default_rng(0), (2, 4, 4)
    arrays = [rng.standard_normal((*batch, *shape)).astype(jnp.dtype(format)) for shape in shapes]
    end = np.full((*batch, queries), keys + 7)  # past the last key
    end[..., -2:] = 0  # the last two see nothing
    for array, number in zip(arrays, hidden, strict=True):
        array[..., -number:, :, :] = np.nan
    options = {"key_end": jnp.asarray(end), "lengths": jnp.asarray(np.full(batch, keys - 4)), "scale": size**-0.5}
    function = functools.partial(chunked_attention, **options, implementation=implementation)
    q, k, v = (jax.device_put(a) for a in arrays)
    if implementation == "mosaic_gpu" and size > 128:
        with running(implementation), pytest.raises(Unsupported, match=r"head_dim=256 is more than 128.*'xla'"):
            jax.eval_shape(function, q, k, v)
        return
    got, cotangent = result_and_gradients(implementation, function, q, k, v)
    q, k, v, do = (np.nan_to_num(wide(a)).reshape(-1, *a.shape[-3:]) for a in (q, k, v, cotangent))
    seen = np.ones((len(q), queries, keys), bool)
    seen[:, :, -4:] = seen[:, -2:] = False
    expected = [a.reshape(*batch, *a.shape[1:]) for a in attention(q, k, v, do, seen, size**-0.5)]
    sums = max(1.0, size**0.5 / 4)  # the error of a score, a sum of so many products, grows as their root
    assert_close(got, expected, format, ("out", "query", "key", "value"), sums)


def test_left_context_without_end_is_all_there_is():
    q = jnp.zeros((1, 20, 1, 4))
    assert jax.eval_shape(functools.partial(chunked_attention, chunks=(16, 2**28)), q, q, q).shape == q.shape
    assert api._clipped((16, 2**28), 20) == (16, 2) and api._clipped((2**40, 0), 20) == (20, 0)
