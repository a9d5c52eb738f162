"""Training that begins with a trained model: what it takes, what it refuses, what may move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conformer.config import Config, ConfigError, FeatureConfig, ModelConfig
from conformer.tokenizer import CharTokenizer
from conformer.training.checkpoint import save_weights
from conformer.training.finetune import begin_with
from conformer.training.names import by_name
from conformer.training.state import initial_state, make_optimiser
from tests.small_model import random_model

SIZES = ModelConfig(
    subsampling_channels=4, encoder_dim=16, num_layers=1, num_heads=2, feed_forward_dim=24, kernel_size=5, vocab_size=5
)
CONFIG = Config(features=FeatureConfig(sample_rate=8_000, num_mel_bins=24, high_freq=3_800.0), model=SIZES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A released model of four letters, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    model = random_model(CONFIG, seed=1, vectors=0.3)
    CharTokenizer(["<blk>", "▁", *"abc"]).save(folder)
    (folder / "config.json").write_text(CONFIG.to_json())
    save_weights(folder, model, 7)
    return folder, model


def state_of(config: Config):
    return initial_state(config, np.zeros(24), np.ones(24))[1]


def test_weights_and_statistics_are_taken(trained):
    folder, model = trained
    state, random = begin_with(state_of(CONFIG), folder)
    assert random == []
    _, params, statistics = nnx.split(model, nnx.Param, ...)
    for expected, taken in ((params, state.params), (params, state.average), (statistics, state.statistics)):
        jax.tree.map(np.testing.assert_array_equal, expected, taken)


def test_other_units_get_a_new_head(trained):
    folder, model = trained
    config = CONFIG.replace({"model.vocab_size": 9})
    fresh = state_of(config)
    state, random = begin_with(fresh, folder)
    assert random == ["head.bias", "head.kernel"]
    np.testing.assert_array_equal(state.params["head"]["kernel"][...], fresh.params["head"]["kernel"][...])
    taken = state.params["encoder"]["blocks"][0]["convolution"]["kernel"][...]
    np.testing.assert_array_equal(taken, model.encoder.blocks[0].convolution.kernel[...])


def test_another_network_is_refused_by_name(trained):
    state = state_of(CONFIG.replace({"model.kernel_size": 7, "model.num_layers": 2}))
    message = r"holds another network: .*encoder.* and \d+ others. Set `features` and `model` to the values"
    with pytest.raises(ConfigError, match=message):
        begin_with(state, trained[0])


def updates(**train) -> dict[str, np.ndarray]:
    """What a gradient of ones moves each parameter by, at a constant rate."""
    config = CONFIG.replace({f"train.{key}": value for key, value in train.items()})
    params = state_of(config).params
    optimiser = make_optimiser(config.train)
    state = optimiser.init(params)
    update = jax.jit(lambda state: optimiser.update(jax.tree.map(jnp.ones_like, params), state, params))
    for _ in range(2):  # the first update is at rate 0
        moved, state = update(state)
    return by_name(jax.tree.map(np.asarray, moved))


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_frozen_parameters_stay_and_the_encoder_moves_slower_than_the_head(optimiser):
    plain = updates(optimiser=optimiser)
    slow = updates(optimiser=optimiser, encoder_rate=0.25, frozen=("encoder.subsampling.*", "*.relative_bias"))
    frozen = {name for name in plain if name.startswith("encoder.subsampling.") or name.endswith("relative_bias")}
    assert len(frozen) > 3
    for name, value in plain.items():
        factor = 0.0 if name in frozen else 1.0 if name.startswith("head.") else 0.25
        np.testing.assert_allclose(slow[name], factor * value, rtol=1e-6, err_msg=name)
        assert value.any()


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigError, match=r"train\.frozen: 'decoder\.\*' names no parameter"):
        updates(frozen=("decoder.*",))
    with pytest.raises(ConfigError, match=r"tokenizer\.kind='given' needs train\.init_from"):
        CONFIG.replace({"tokenizer.kind": "given"})
