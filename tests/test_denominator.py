"""The denominator of maximum mutual information, against the enumeration of all sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import batch_of_noise, start, tiny

from conformer.config import Config, ConfigError, TrainConfig
from conformer.ctc import ctc_loss, min_frames
from conformer.tokenizer import BLANK, CharTokenizer
from conformer.training import denominator
from conformer.training.denominator import log_denominator, unit_bigram
from conformer.training.step import make_train_step

VOCAB = 4


def example(frames: int) -> tuple[jax.Array, np.ndarray]:
    rng = np.random.default_rng(frames)
    return jnp.asarray(2 * rng.normal(size=(1, frames, VOCAB)), jnp.float32), rng.dirichlet(np.ones(VOCAB), VOCAB)


def enumerated(logits, bigram) -> float:
    """ln of the sum over every sequence that fits: its probability by `ctc_loss`, times that of the bigram."""
    frames, total = logits.shape[1], 0.0
    for length in range(frames + 1):
        for labels in itertools.product(range(1, VOCAB), repeat=length):
            if min_frames(labels) <= frames:
                padded = jnp.asarray([labels or (1,)])
                nll = ctc_loss(logits, jnp.array([frames]), padded, jnp.array([length]))
                total += np.exp(-float(nll[0])) * np.prod(
                    [bigram[pair] for pair in itertools.pairwise((0, *labels, 0))]
                )
    return float(np.log(total))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_it_sums_over_every_sequence_of_units(frames):
    logits, bigram = example(frames)
    found = log_denominator(logits, jnp.array([frames]), jnp.asarray(bigram, jnp.float32))
    assert float(found[0]) == pytest.approx(enumerated(logits, bigram), abs=1e-5)


def test_frames_beyond_the_length_change_nothing_and_get_no_gradient():
    logits, bigram = example(5)
    bigram = jnp.asarray(bigram, jnp.float32)

    def of(logits):
        return log_denominator(logits, jnp.array([3]), bigram)[0]

    short = log_denominator(logits[:, :3], jnp.array([3]), bigram)[0]
    np.testing.assert_allclose(of(logits), short, rtol=1e-6)
    gradient = jax.grad(of)(logits)
    assert (gradient[:, 3:] == 0).all() and (gradient[:, :3] != 0).any()


def test_confident_frames_of_a_long_utterance_stay_finite():
    """A softmax of one and zeros, and sequences that the bigram calls all but impossible."""
    logits = 200.0 * jax.nn.one_hot(jnp.arange(1_000) % VOCAB, VOCAB)[None]
    bigram = jnp.full((VOCAB, VOCAB), 1e-9).at[:, BLANK].set(1.0)
    value, gradient = jax.value_and_grad(lambda x: log_denominator(x, jnp.array([1_000]), bigram)[0])(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_bigram_is_that_of_the_texts():
    tokenizer = CharTokenizer(["<blk>", "a", "b"])
    bigram = unit_bigram(tokenizer, ["ab", "ab", "b"] * 1_000)
    np.testing.assert_allclose(bigram.sum(1), 1, rtol=1e-6)
    assert bigram[BLANK, 1] == pytest.approx(2 / 3, abs=0.01) and bigram[1, 2] == pytest.approx(1, abs=0.01)
    assert bigram[2, BLANK] == pytest.approx(1, abs=0.01) and (bigram > 0).all()


def test_a_step_with_it_has_another_loss_and_moves():
    batch = batch_of_noise()
    losses = []
    for weight in (0.0, 0.5):
        config = tiny(dropout=0.0).replace({"train.mmi_weight": weight})
        graphdef, state = start(config)
        bigram = np.full((config.model.vocab_size,) * 2, 1 / config.model.vocab_size, np.float32)
        state, metrics = make_train_step(config, graphdef, None, bigram)(state, batch, np.int32(0), np.int32(-1))
        assert metrics["skipped"] == 0 and metrics["gradient_norm"] > 0
        losses.append(float(metrics["loss"]))
    assert losses[1] < losses[0]  # a denominator is at most 1


def test_what_cannot_be(monkeypatch):
    config = tiny().replace({"train.mmi_weight": 0.5})
    with pytest.raises(ValueError, match=r"train.mmi_weight=0\.5 needs a bigram"):
        make_train_step(config, start(config)[0])
    with pytest.raises(ConfigError, match=r"train.mmi_weight=-1\.0 must not be negative"):
        Config(train=TrainConfig(mmi_weight=-1.0))
    monkeypatch.setattr(denominator, "MOST_UNITS", 2)
    with pytest.raises(ConfigError, match="3 units are too many"):
        unit_bigram(CharTokenizer(["<blk>", "a", "b"]), ["ab"])
