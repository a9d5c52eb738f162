"""Training that begins with a trained model: what it takes, what it refuses, what may move."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import train
from conformer.config import Config, ConfigError, ModelConfig
from conformer.data import Batch
from conformer.numerics import apply_policy
from conformer.tokenizer import CharTokenizer
from conformer.training.checkpoint import Checkpoints, load_model, save_weights
from conformer.training.finetune import begin_with
from conformer.training.lora import merged
from conformer.training.names import by_name
from conformer.training.state import TrainState, initial_state, make_optimiser
from conformer.training.step import make_train_step
from tests.small_model import FEATURES, SIZES, random_model

UNITS = ["<blk>", "▁", *"abc"]
CONFIG = Config(features=FEATURES, model=ModelConfig(**SIZES, vocab_size=len(UNITS)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A released model of four letters, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    model = random_model(CONFIG, seed=1, vectors=0.3)
    CharTokenizer(UNITS).save(folder)
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
    message = r"holds another network: .*encoder.* and \d+ others. Set `features` and `model` .*train\.init_random"
    with pytest.raises(ConfigError, match=message):
        begin_with(state, trained[0])


FRONT_END = "encoder.subsampling.*"


@pytest.mark.parametrize("kind, channels", [("vanilla", 6), ("depthwise_separable", 4)])
def test_what_is_named_begins_at_random(trained, kind, channels):
    """A front end whose parameters have other names and shapes, or one that fits; all else is taken."""
    folder, model = trained
    config = CONFIG.replace({"model.subsampling": kind, "model.subsampling_channels": channels})
    fresh = by_name(state_of(config).params)
    state, random = begin_with(state_of(config), folder, (FRONT_END,))
    assert random == sorted(name for name in fresh if name.startswith("encoder.subsampling."))
    own = by_name(nnx.state(model, nnx.Param))
    for parameters in (state.params, state.average):
        for name, value in by_name(parameters).items():
            np.testing.assert_array_equal(value, (fresh if name in random else own)[name], err_msg=name)


@pytest.mark.parametrize("pattern", ["decoder.*", "encoder.subsamplin"])
def test_a_pattern_that_names_nothing_is_refused(trained, pattern):
    message = rf"train\.init_random: {re.escape(repr(pattern))} names no parameter; there are "
    with pytest.raises(ConfigError, match=message):
        begin_with(state_of(CONFIG), trained[0], (FRONT_END, pattern))


def updates(**train) -> dict[str, np.ndarray]:
    """Returns the steps by which a gradient of ones moves each trained parameter, at a constant rate."""
    config = CONFIG.replace({f"train.{key}": value for key, value in train.items()})
    params = state_of(config).params
    optimiser = make_optimiser(config.train)
    state = optimiser.init(params)
    update = jax.jit(lambda state: optimiser.update(jax.tree.map(jnp.ones_like, params), state, params))
    for _ in range(2):  # the first update is at rate 0
        moved, state = update(state)
    return by_name(jax.tree.map(np.asarray, moved))


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.slow_but("muon")
def test_the_encoder_moves_slower_than_the_head(optimiser):
    plain, slow = updates(optimiser=optimiser), updates(optimiser=optimiser, encoder_rate=0.25)
    for name, value in plain.items():
        assert value.any()
        np.testing.assert_allclose(slow[name], (1.0 if name.startswith("head.") else 0.25) * value, rtol=1e-6)


def sizes(tree: Any) -> list[int]:
    return sorted(leaf.size for leaf in jax.tree.leaves(tree) if leaf.size > 1)


def test_the_optimiser_holds_nothing_of_what_is_frozen():
    state = state_of(CONFIG.replace({"train.frozen": ("encoder.subsampling.*", "*.relative_bias")}))
    frozen = by_name(state.frozen)
    assert len(frozen) > 3
    assert all(name.startswith("encoder.subsampling.") or name.endswith("relative_bias") for name in frozen)
    assert frozen.keys() | by_name(state.params).keys() == by_name(state.average).keys()
    assert sizes(state.optimiser) == sorted(2 * sizes(state.params))  # Adam's two moments


# ----------------------------------------------------------------------- LoRA

LORA = {"train.lora_rank": 3, "train.lora_alpha": 6.0, "train.warmup_steps": 1, "train.learning_rate": 0.01}
MAPS = (
    "attention.query_key_value",
    "attention.output",
    "convolution.gate",
    "convolution.output",
    *(f"{place}_feed_forward.{map}" for place in ("first", "second") for map in ("expand", "contract")),
)


def lora(folder, **train) -> Config:
    return CONFIG.replace({"train.init_from": str(folder)} | LORA | {f"train.{k}": v for k, v in train.items()})


def test_adapters_begin_as_the_model_that_is_adapted(trained):
    """They equal it to the bit. All linear maps of the blocks have one; nothing else of the encoder is trained."""
    folder, model = trained
    config = lora(folder)
    state, random = begin_with(state_of(config), folder)
    adapters = {f"encoder.blocks.0.{name}.lora_{letter}" for name in MAPS for letter in "ab"}
    assert by_name(state.params).keys() == adapters | {"head.kernel", "head.bias"}
    assert random == [] and sizes(state.optimiser) == sorted(2 * sizes(state.params))
    own = by_name(nnx.state(model, nnx.Param))
    for parameters in (state.average, merged(config.train, state.params, state.frozen)):
        found = by_name(parameters)
        assert found.keys() == own.keys()
        for name, value in own.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def adapted(trained):
    """A configuration, the state before and after two updates, and the compiled update."""
    folder, _ = trained
    config = lora(folder)
    graphdef, fresh = initial_state(config, np.zeros(24), np.ones(24))
    before, _ = begin_with(fresh, folder)
    step, batch = make_train_step(config, graphdef), batch_of_noise()

    def update(state: TrainState, times: int) -> TrainState:
        state = jax.tree.map(jnp.copy, state)  # the step takes what it is given
        for _ in range(times):
            state, metrics = step(state, batch, np.int32(0), np.int32(-1))
            assert np.isfinite(metrics["loss"])
        return state

    return config, before, update(before, 2), update


def batch_of_noise() -> Batch:
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal((2, 6_000))).astype(np.float32)
    labels = np.array([[2, 3, 4], [4, 3, 0]], np.int32)
    return Batch(audio, np.full(2, 6_000, np.int32), labels, np.array([3, 2], np.int32), np.ones(2, np.float32))


@pytest.mark.slow
def test_training_moves_adapters_and_head_alone(adapted):
    """The kernels of the average move by no more than a product of the rank, all else of it not by a bit."""
    config, before, after, _ = adapted
    for name, value in by_name(after.frozen).items():
        np.testing.assert_array_equal(value, by_name(before.frozen)[name], err_msg=name)
    for name, value in by_name(after.params).items():
        assert (np.asarray(value) != np.asarray(by_name(before.params)[name])).any(), name
    old, new = by_name(before.average), by_name(after.average)
    moved = {name for name in new if (np.asarray(new[name]) != np.asarray(old[name])).any()}
    kernels = {f"encoder.blocks.0.{name}.kernel" for name in MAPS}
    assert moved == kernels | {"head.kernel", "head.bias"}

    now = by_name(merged(config.train, after.params, after.frozen))
    a, b = (by_name(after.params)[f"encoder.blocks.0.attention.output.lora_{letter}"] for letter in "ab")
    kernel = by_name(before.frozen)["encoder.blocks.0.attention.output.kernel"]
    expected = kernel + 6.0 / 3 * np.asarray(a) @ np.asarray(b)
    np.testing.assert_allclose(now["encoder.blocks.0.attention.output.kernel"], expected, rtol=1e-6, atol=1e-7)


def test_a_resumed_run_ends_as_an_undisturbed_one(adapted, tmp_path):
    config, before, after, update = adapted
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, update(before, 1))
    checkpoints.wait()
    resumed = update(checkpoints.restore(state_of(config)._replace(loss_scale=None)), 1)
    for name, value in by_name(after).items():
        np.testing.assert_array_equal(by_name(resumed)[name], value, err_msg=name)


def test_checkpoints_whose_names_end_in_value_are_read(tmp_path):
    """Reads a checkpoint of an older version, in which names ended in ".value"."""
    state = state_of(CONFIG)
    older = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(state)}
    assert any(name.endswith(".value") for name in older)
    manager = ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=ocp.PyTreeCheckpointHandler())
    manager.save(1, args=ocp.args.PyTreeSave(older))
    manager.wait_until_finished()
    restored = by_name(Checkpoints(tmp_path).restore(jax.tree.map(jnp.zeros_like, state)))
    for name, value in by_name(state).items():
        np.testing.assert_array_equal(restored[name], value, err_msg=name)


@pytest.mark.slow
def test_what_is_written_is_an_ordinary_model(adapted, trained, tmp_path):
    """A checkpoint of the run, and weights.npz, load without a word of adapters, in every layout and policy."""
    config, _, after, _ = adapted
    CharTokenizer(UNITS).save(tmp_path)
    (tmp_path / "config.json").write_text(config.to_json())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, after)
    checkpoints.wait()
    _, model, _, step = load_model(tmp_path)
    save_weights(tmp_path, model, step)
    _, released, _, _ = load_model(tmp_path, "channels_first")
    own = by_name(nnx.state(trained[1], nnx.Param))
    for name, value in by_name(nnx.state(released, nnx.Param)).items():
        np.testing.assert_array_equal(value, by_name(after.average)[name], err_msg=name)
        assert value.shape == own[name].shape
    features = jnp.asarray(np.random.default_rng(0).standard_normal((1, 40, 24), np.float32))
    logits = [apply_policy(m, "int8")(features, jnp.array([40]))[0] for m in (model, released, trained[1])]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert np.abs(logits[0] - logits[2]).max() > 1e-3  # it did learn


def test_maps_are_chosen_by_pattern_and_frozen_keeps_the_head(trained):
    config = lora(trained[0], lora_maps=("*.attention.*", "encoder.subsampling.*"), frozen=("head.*",), lora_rank=2)
    names = {name.rpartition(".")[0] for name in by_name(state_of(config).params)}
    expected = {f"encoder.blocks.0.attention.{name}" for name in ("query_key_value", "output")}
    assert {name for name in names if "subsampling" not in name} == expected and names > expected


def test_muon_moves_adapters(trained):
    moved = updates(optimiser="muon", init_from=str(trained[0]), lora_rank=3)
    assert len(moved) == 2 * len(MAPS) + 2 and all(value.any() for value in moved.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_random": ("head.*",)}, r"train\.init_random needs train\.init_from, the model that all else is taken"),
        ({"frozen": ("decoder.*",)}, r"train\.frozen: 'decoder\.\*' names no parameter; there are encoder\.blocks"),
        ({"frozen": ("*",)}, r"train\.frozen names every parameter: leave some to train"),
        ({"lora_rank": 2}, r"train\.lora_rank needs train\.init_from, the model that is adapted"),
        ({"lora_rank": -1}, r"train\.lora_rank=-1 must not be negative"),
        ({"lora_rank": 2, "lora_alpha": 0.0, "init_from": "x"}, r"train\.lora_rank=2 needs train\.lora_alpha > 0"),
        ({"lora_rank": 2, "lora_maps": (), "init_from": "x"}, r"needs train\.lora_alpha > 0 and train\.lora_maps"),
        (
            {"lora_rank": 17, "init_from": "x"},
            r"train\.lora_rank=17 is larger than encoder\.blocks\.0\.attention\.output,",
        ),
        (
            {"lora_rank": 2, "lora_maps": ("*.norm", "*.output"), "init_from": "x"},
            r"train\.lora_maps: '\*\.norm' names no linear map of the encoder; there are encoder\.blocks",
        ),
    ],
)
def test_impossible_requests_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        state_of(CONFIG.replace({f"train.{key}": value for key, value in values.items()}))


def test_given_units_need_a_model():
    with pytest.raises(ConfigError, match=r"tokenizer\.kind='given' needs train\.init_from"):
        CONFIG.replace({"tokenizer.kind": "given"})


def test_a_finished_model_is_not_trained_in_place(trained):
    """Both its own configuration and another are refused, and nothing is written."""
    folder, _ = trained
    before = sorted(path.name for path in folder.iterdir())
    for config in (CONFIG, CONFIG.replace({"train.learning_rate": 1.0})):
        with pytest.raises(ConfigError, match=r"holds the weights of a finished model.*--config\.train\.init_from="):
            train.train(config, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
