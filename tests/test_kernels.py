"""The operations: each against its definition written out in NumPy, and against numerical gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import kernels_in_your_model
from kernels.depthwise_conv import depthwise_conv
from kernels.depthwise_conv import reference as depthwise_reference
from kernels.layer_norm import layer_norm
from kernels.lut_softmax import softmax


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_gradient_is_numerical(function, *inputs):
    """Going along the gradient, a random projection of the output rises by the gradient's norm."""
    weights = normal(9, *function(*inputs).shape)
    loss = jax.jit(lambda inputs: jnp.sum(weights * function(*inputs)))
    gradient = jax.jit(jax.grad(loss))(inputs)
    norm = np.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in gradient))
    above, below = (tuple(x + step / norm * g for x, g in zip(inputs, gradient, strict=True)) for step in (0.02, -0.02))
    np.testing.assert_allclose((loss(above) - loss(below)) / 0.04, norm, rtol=1e-2)


# ----------------------------------------------------------------- layer norm


def test_layer_norm_is_its_formula():
    x, scale, bias = normal(0, 2, 3, 8) * 4 + 1, normal(1, 8), normal(2, 8)
    exact = np.asarray(x, np.float64)
    deviation = np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    expected = (exact - exact.mean(-1, keepdims=True)) / deviation * scale + bias
    np.testing.assert_allclose(layer_norm(x, scale, bias), expected, atol=2e-6)


def test_layer_norm_survives_a_large_mean():
    x, ones, zeros = normal(0, 4, 64), jnp.ones(64), jnp.zeros(64)
    shifted = x + 3000.0  # rounds x to 2e-4; E[x^2] - mean^2 would lose all of its variance
    np.testing.assert_allclose(layer_norm(shifted, ones, zeros), layer_norm(x, ones, zeros), atol=2e-3)


def test_layer_norm_of_a_constant_row_is_the_bias():
    bias = normal(0, 8)
    np.testing.assert_array_equal(layer_norm(jnp.full((2, 8), 5.0), normal(1, 8), bias), [bias, bias])


# -------------------------------------------------------------------- softmax


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(0.1, 60.0))
def test_softmax_is_its_formula_under_any_mask(seed, size):
    scores = normal(seed, 4, 6) * size
    mask = np.random.default_rng(seed).random((4, 6)) < 0.6
    mask[0] = False
    result = np.asarray(softmax(scores, jnp.asarray(mask)))
    for row in range(4):
        seen = np.asarray(scores, np.float64)[row, mask[row]]
        if seen.size:
            weights = np.exp(seen - seen.max())
            np.testing.assert_allclose(result[row, mask[row]], weights / weights.sum(), atol=1e-5)
        assert (result[row][~mask[row]] == 0).all()
    assert (result[0] == 0).all() and np.isfinite(result).all()


def test_softmax_gradient_is_zero_and_never_nan_where_masked():
    scores = normal(0, 3, 5)
    mask = jnp.array([[True] * 5, [False] * 5, [True, False, True, False, False]])
    gradient = np.asarray(jax.grad(lambda s: jnp.sum(softmax(s, mask) * normal(1, 3, 5)))(scores))
    assert np.isfinite(gradient).all() and (gradient[~mask] == 0).all() and (gradient[0] != 0).all()
    assert_gradient_is_numerical(lambda s: softmax(s, mask), scores)


def test_softmax_of_large_scores_is_finite():
    result = softmax(jnp.array([[1e30, 1e30, -1e30]]), jnp.array([[True, True, True]]))
    np.testing.assert_array_equal(result, [[0.5, 0.5, 0.0]])


# ------------------------------------------------------- depthwise convolution


def naive_depthwise(x, kernel, stride):
    """y[b, n, c] = sum_k x[b, stride n + k, c] kernel[k, c], output by output."""
    x, kernel = np.asarray(x), np.asarray(kernel)
    taps = kernel.shape[:-1]
    out = [(size - width) // step + 1 for size, width, step in zip(x.shape[1:-1], taps, stride, strict=True)]
    y = np.zeros((len(x), *out, x.shape[-1]))
    for place in np.ndindex(*out):
        window = tuple(slice(i * n, i * n + width) for n, width, i in zip(place, taps, stride, strict=True))
        y[(slice(None), *place)] = (x[(slice(None), *window)] * kernel).sum(axis=tuple(range(1, x.ndim - 1)))
    return y


@pytest.mark.parametrize(
    "shape, taps, stride",
    [
        ((2, 9, 3), (4,), (1,)),
        ((2, 9, 3), (4,), (2,)),
        ((2, 9, 8, 3), (3, 3), (2, 2)),
        ((1, 11, 7, 2), (5, 5), (3, 3)),
        ((2, 9, 11, 3), (3, 5), (2, 4)),
    ],
)
def test_depthwise_conv_and_its_own_gradient(shape, taps, stride):
    x, kernel = normal(0, *shape), normal(1, *taps, shape[-1])
    y = jax.jit(lambda x, kernel: depthwise_conv(x, kernel, stride=stride))(x, kernel)
    np.testing.assert_allclose(y, naive_depthwise(x, kernel, stride), atol=1e-5)
    cotangent = normal(2, *y.shape)

    def gradients(function):
        return jax.jit(lambda *inputs: jax.vjp(function, *inputs)[1](cotangent))

    got = gradients(lambda x, kernel: depthwise_conv(x, kernel, stride=stride))(x, kernel)
    expected = gradients(lambda x, kernel: depthwise_reference.depthwise_conv(x, kernel, stride))(x, kernel)
    for mine, automatic in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, automatic, atol=1e-5)


def test_depthwise_conv_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(1, 9, 3\) needs a kernel of rank 2"):
        depthwise_conv(normal(0, 1, 9, 3), normal(1, 3, 3, 3))
    with pytest.raises(ValueError, match="smaller than the kernel's"):
        depthwise_conv(normal(0, 1, 3, 3), normal(1, 4, 3))


def test_depthwise_conv_of_an_empty_batch_is_empty():
    kernel = normal(1, 3, 8)
    y, transpose = jax.vjp(depthwise_conv, jnp.zeros((0, 9, 8)), kernel)
    assert y.shape == (0, 7, 8)
    np.testing.assert_array_equal(transpose(y)[1], np.zeros(kernel.shape))


# ------------------------------------------------- in models that are not the recogniser


def test_models_of_others_compute_what_they_do_with_the_functions_of_jax():
    differences = kernels_in_your_model.differences()
    assert set(differences) == {"vision transformer", "language model"}
    assert all(difference < 1e-5 for difference in differences.values())


def test_models_of_others_are_trained_through_the_kernels():
    parameters, tokens = kernels_in_your_model.random_parameters(0), jnp.arange(24)[None] % 7
    both = {}
    for name, functions in {
        "ours": (),
        "theirs": (kernels_in_your_model.jax_rms_norm, kernels_in_your_model.jax_attention),
    }.items():
        loss = lambda parameters, own=functions: jnp.sum(  # noqa: E731
            jax.nn.log_softmax(kernels_in_your_model.language_model(parameters, tokens, *own))[..., 3]
        )
        both[name] = jax.jit(jax.grad(loss))(parameters)
    for ours, theirs in zip(*map(jax.tree.leaves, both.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()))
