"""Two views of each utterance: how far they disagree, what each is taught, and what the second one sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import batch_of_noise, start, tiny

from conformer.config import Config, ConfigError, TrainConfig
from conformer.training.consistency import disagreement, two_views
from conformer.training.step import make_train_step
from kernels.chunked_attention import chunk_rows

LENGTHS = jnp.array([5, 3])


def logits(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 5, 4)).astype(np.float32))


def test_disagreement_is_half_of_both_divergences():
    p, q = (np.asarray(jax.nn.softmax(logits(seed)), np.float64) for seed in (0, 1))
    divergences = np.sum(p * np.log(p / q) + q * np.log(q / p), axis=-1) / 2
    expected = [divergences[0].sum(), divergences[1, :3].sum()]
    np.testing.assert_allclose(disagreement(logits(0), logits(1), LENGTHS), expected, rtol=1e-5)
    np.testing.assert_array_equal(disagreement(logits(0), logits(0), LENGTHS), [0, 0])


def test_each_view_moves_towards_the_other_as_it_stands():
    """A divergence from a fixed target has the gradient of a cross entropy: here half the difference of both views."""
    both = jax.grad(lambda a, b: disagreement(a, b, LENGTHS).sum(), argnums=(0, 1))
    first, second = both(logits(0), logits(1))
    inside = np.arange(5) < np.asarray(LENGTHS)[:, None]
    expected = 0.5 * (jax.nn.softmax(logits(0)) - jax.nn.softmax(logits(1))) * inside[..., None]
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_allclose(second, -expected, atol=1e-6)


def test_the_first_view_is_whole_and_the_second_in_chunks():
    lengths = jnp.array([7, 6, 7, 6])
    chunk_size, num_left_chunks = two_views(2, jnp.asarray(3), jnp.asarray(1))
    start_of, end_of = chunk_rows(7, lengths, chunk_size, num_left_chunks)
    whole, chunked = chunk_rows(7, lengths, 0, -1), chunk_rows(7, lengths, 3, 1)
    for rows, first, second in zip((start_of, end_of), whole, chunked, strict=True):
        np.testing.assert_array_equal(rows, jnp.concatenate([first[:2], second[2:]]))


@pytest.mark.slow
def test_views_that_see_the_same_agree():
    """Two whole views without masks and dropout are equal; in chunks the second view and the loss differ."""
    batch, config = batch_of_noise(), tiny(dropout=0.0)
    losses = []
    for weight in (0.0, 0.5):
        changed = config.replace({"train.consistency_weight": weight})
        step = make_train_step(changed, start(changed)[0])
        chunks = (np.int32(0), np.int32(-1)), (np.int32(2), np.int32(0))
        losses.append([float(step(start(changed)[1], batch, *chunk)[1]["loss"]) for chunk in chunks])
    (whole, chunked), (whole_views, chunked_views) = losses
    assert whole == pytest.approx(whole_views, rel=1e-5) and chunked != pytest.approx(chunked_views, rel=1e-5)


def test_a_weight_that_cannot_be():
    with pytest.raises(ConfigError, match=r"consistency_weight=-1\.0 must not be negative"):
        Config(train=TrainConfig(consistency_weight=-1.0))
