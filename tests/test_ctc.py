"""CTC loss against the enumeration of all paths, against optax, and at its edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.ctc import ctc_loss, min_frames

FRAMES, VOCAB, LABELS = 4, 3, 3  # fixed, so that jit compiles once


@jax.jit
def loss_and_gradient(logits, logit_lengths, labels, label_lengths):
    loss, backward = jax.vjp(lambda logits: ctc_loss(logits, logit_lengths, labels, label_lengths), logits)
    return loss, backward(jnp.ones_like(loss))[0]


loss_only = jax.jit(ctc_loss)  # without a gradient, other code runs


def batch(rows, num_labels=LABELS):
    """Arrays of [(logits, num_frames, labels)]."""
    padded = [list(labels) + [0] * (num_labels - len(labels)) for _, _, labels in rows]
    return (
        jnp.asarray(np.stack([logits for logits, _, _ in rows]), jnp.float32),
        jnp.asarray([num_frames for _, num_frames, _ in rows], jnp.int32),
        jnp.asarray(padded, jnp.int32).reshape(len(rows), num_labels),
        jnp.asarray([len(labels) for _, _, labels in rows], jnp.int32),
    )


def spelled(path):
    """Returns what a path of symbols spells: runs merged, blanks dropped."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]


def enumerated(logits, num_frames, labels):
    """Loss and gradient in float64, from the probability of every path of symbols that spells the labels."""
    logits = np.asarray(logits, np.float64)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    occupancy, total = np.zeros_like(logits), 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=num_frames):
        if spelled(path) == list(labels):
            probability = np.prod([probs[t, symbol] for t, symbol in enumerate(path)])
            total += probability
            occupancy[range(num_frames), path] += probability
    if total == 0:
        return np.inf, np.zeros_like(logits)
    gradient = probs - occupancy / total
    gradient[num_frames:] = 0
    return max(-np.log(total), 0.0), gradient


@st.composite
def utterances(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(FRAMES, VOCAB)) * draw(st.sampled_from([0.0, 0.3, 3.0, 15.0]))
    labels = draw(st.lists(st.integers(1, VOCAB - 1), max_size=LABELS))
    return logits.astype(np.float32), draw(st.integers(0, FRAMES)), labels


@settings(max_examples=60)
@given(rows=st.lists(utterances(), min_size=3, max_size=3))
def test_equals_the_enumeration_of_all_paths(rows):
    loss, gradient = loss_and_gradient(*batch(rows))
    expected = [enumerated(*row) for row in rows]
    np.testing.assert_allclose(loss, [value for value, _ in expected], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(gradient, [value for _, value in expected], atol=1e-5)
    np.testing.assert_allclose(loss_only(*batch(rows)), loss, rtol=1e-5, atol=2e-6)
    for value, (_, num_frames, labels) in zip(loss, rows, strict=True):
        assert bool(jnp.isinf(value)) == (num_frames < min_frames(labels))


def random_batch(seed, sizes, num_frames=60, vocab=30, num_labels=20):
    rng = np.random.default_rng(seed)
    rows = [
        (rng.normal(size=(num_frames, vocab)) * 3, frames, rng.integers(1, vocab, labels)) for frames, labels in sizes
    ]
    return batch(rows, num_labels)


def test_agrees_with_optax():
    logits, logit_lengths, labels, label_lengths = random_batch(0, [(60, 20), (41, 7), (33, 0), (1, 1)])

    def reference(logits):
        frames_beyond = jnp.arange(logits.shape[1]) >= logit_lengths[:, None]
        labels_beyond = jnp.arange(labels.shape[1]) >= label_lengths[:, None]
        return optax.ctc_loss(logits, frames_beyond.astype(float), labels, labels_beyond.astype(float))

    loss, gradient = loss_and_gradient(logits, logit_lengths, labels, label_lengths)
    expected, backward = jax.vjp(reference, logits)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, backward(jnp.ones_like(expected))[0], atol=1e-4)
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-5)


def test_what_lies_beyond_the_lengths_has_no_effect():
    logits, logit_lengths, labels, label_lengths = random_batch(1, [(30, 8), (12, 3), (1, 0)], 30, 12, 8)
    loss, gradient = loss_and_gradient(logits, logit_lengths, labels, label_lengths)
    inside = (jnp.arange(35) < logit_lengths[:, None])[:, :, None]
    longer = jnp.where(inside, jnp.pad(logits, ((0, 0), (0, 5), (0, 0))), jnp.nan)
    for junk in (-1, 5, 10**6):
        more_labels = jnp.where(jnp.arange(11) < label_lengths[:, None], jnp.pad(labels, ((0, 0), (0, 3))), junk)
        padded_loss, padded_gradient = loss_and_gradient(longer, logit_lengths, more_labels, label_lengths)
        np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)
        np.testing.assert_allclose(padded_gradient[:, :30], gradient, atol=1e-6)
        assert not jnp.where(inside, 0.0, padded_gradient).any()


def test_alone_or_in_a_batch():
    arguments = random_batch(2, [(60, 20), (25, 9), (10, 2)])
    loss, gradient = loss_and_gradient(*arguments)
    for row in range(3):
        alone = loss_and_gradient(*(argument[row : row + 1] for argument in arguments))
        np.testing.assert_allclose(alone[0][0], loss[row], rtol=1e-6)
        np.testing.assert_allclose(alone[1][0], gradient[row], atol=1e-6)


@pytest.mark.parametrize("confidence", [20.0, 1e3, 1e6])
def test_confident_and_correct_is_never_negative(confidence):
    path = np.array([0, 3, 3, 0, 3, 1, 2, 2, 0, 0] * 20)
    logits = np.eye(5)[path] * confidence
    arguments = batch([(logits, len(path), spelled(path))], num_labels=90)
    loss, gradient = loss_and_gradient(*arguments)
    assert 0 <= loss[0] < 1e-4 and bool(jnp.isfinite(gradient).all())


def test_confident_and_wrong_is_finite():
    logits = np.full((200, 5), [1e4, 0, 0, 0, 0])
    loss, gradient = loss_and_gradient(*batch([(logits, 200, [1, 2, 2])]))
    np.testing.assert_allclose(loss, 3e4, rtol=1e-3)
    assert bool(jnp.isfinite(gradient).all())


def test_labels_that_do_not_fit_leave_the_others_alone():
    logits = np.random.default_rng(3).normal(size=(3, FRAMES, VOCAB))
    rows = [(logits[0], 4, [1, 2]), (logits[1], 2, [1, 1]), (logits[2], 0, [1])]
    loss, gradient = loss_and_gradient(*batch(rows))
    assert jnp.isinf(loss).tolist() == [False, True, True]
    assert not gradient[1:].any() and gradient[0].any()
    assert loss[0] == loss_and_gradient(*batch([rows[0]] * 3))[0][0]


def test_forbidden_symbols():
    """A logit of -inf rules a symbol out, and with it every path through it."""
    logits = np.zeros((FRAMES, VOCAB))
    logits[:, 2] = -np.inf
    loss, gradient = loss_and_gradient(*batch([(logits, 4, [1]), (logits, 4, [2]), (logits, 4, [1, 2])]))
    np.testing.assert_allclose(loss[0], -np.log(10 / 16), rtol=1e-6)  # 10 of the 16 paths of blanks and ones
    assert jnp.isinf(loss[1:]).all() and bool(jnp.isfinite(gradient).all())


def test_empty_arrays():
    nothing = jnp.zeros((2, 0), jnp.int32), jnp.zeros(2, jnp.int32)
    np.testing.assert_array_equal(ctc_loss(jnp.zeros((2, 0, 3)), jnp.zeros(2, jnp.int32), *nothing), 0.0)
    loss, gradient = loss_and_gradient(jnp.zeros((2, 4, 3)), jnp.array([4, 1]), *nothing)
    np.testing.assert_allclose(loss, np.log(3) * np.array([4, 1]), rtol=1e-6)  # all blank
    np.testing.assert_allclose(gradient[0], np.tile([-2 / 3, 1 / 3, 1 / 3], (4, 1)), rtol=1e-6)
    loss, gradient = loss_and_gradient(*batch([(np.zeros((0, 3)), 0, []), (np.zeros((0, 3)), 0, [1])]))
    assert loss.tolist() == [0.0, np.inf] and gradient.shape == (2, 0, 3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_logits(dtype):
    logits, *rest = random_batch(4, [(60, 20), (41, 7)])
    logits = logits.astype(dtype)
    loss, gradient = loss_and_gradient(logits, *rest)
    expected_loss, expected_gradient = loss_and_gradient(logits.astype(jnp.float32), *rest)
    assert loss.dtype == jnp.float32 and gradient.dtype == dtype
    np.testing.assert_array_equal(loss, expected_loss)
    np.testing.assert_array_equal(gradient, expected_gradient.astype(dtype))


def test_loss_scale_reaches_gradients_too_small_for_float16():
    arguments = (jnp.array([[[18.0, 0.0]]], jnp.float16), jnp.array([1]), jnp.zeros((1, 0), jnp.int32), jnp.array([0]))

    def gradient(scale):
        return jax.grad(lambda logits: scale * ctc_loss(logits, *arguments[1:]).sum())(arguments[0])[0, 0, 1]

    assert gradient(1) == 0
    np.testing.assert_allclose(gradient(2.0**15), 2.0**15 * np.exp(-18), rtol=1e-3)


def test_a_nan_is_not_hidden():
    logits, *rest = random_batch(5, [(60, 20), (41, 7)])
    loss, gradient = loss_and_gradient(logits.at[1, 3, 2].set(jnp.nan), *rest)
    assert jnp.isnan(loss).tolist() == [False, True]
    assert jnp.isnan(gradient).any((1, 2)).tolist() == [False, True]


def test_vmap():
    halves = [random_batch(seed, [(60, 20), (25, 9)]) for seed in (6, 7)]
    loss, gradient = jax.vmap(loss_and_gradient)(*map(jnp.stack, zip(*halves, strict=True)))
    for half, arguments in enumerate(halves):
        expected = loss_and_gradient(*arguments)
        np.testing.assert_allclose(loss[half], expected[0], rtol=1e-6)
        np.testing.assert_allclose(gradient[half], expected[1], atol=1e-6)


def test_min_frames():
    assert [min_frames(labels) for labels in ([], [4], [4, 4], [4, 5, 4], [4, 4, 4, 1, 1])] == [0, 1, 3, 3, 8]
