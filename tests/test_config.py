"""The typed configuration, and every file of configs/."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.config import Config, ConfigError, DataConfig, ModelConfig, TrainConfig, check_key, load_module
from conformer.data import Batch
from conformer.model import ConformerCTC
from conformer.training.state import count_parameters, initial_state
from conformer.training.step import make_train_step

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))


# ---------------------------------------------------------------------- values


@settings(max_examples=20)
@given(
    st.integers(0, 9),
    st.sampled_from([(0,), (0, 8, 16)]),
    st.floats(0.0, 0.5),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_json_keeps_every_value(tmp_path_factory, seed, chunk_sizes, dropout, compute):
    config = Config(
        seed=seed, model=ModelConfig(dropout=dropout), train=TrainConfig(chunk_sizes=chunk_sizes, compute=compute)
    )
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(config.to_json())
    assert Config.from_json(path) == config and config.differences(Config.from_json(path)) == []


def test_differences_name_the_keys():
    other = Config(seed=1, model=ModelConfig(encoder_dim=96))
    assert Config().differences(other) == ["seed", "model.encoder_dim"]


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("model", {"subsampling": "vanila"}, "model.subsampling='vanila' is not one of vanilla, depthwise_separable"),
        ("model", {"subsampling_factor": 5}, "model.subsampling_factor=5 is not one of 4, 6, 8"),
        ("model", {"num_heads": 5}, "model.num_heads=5 does not divide model.encoder_dim=144"),
        ("model", {"num_heads": 0}, "model.num_heads=0 must be at least 1"),
        ("model", {"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ("model", {"dropout": 1.0}, "model.dropout=1.0 must lie in"),
        ("model", {"kernel_size": 4, "causal_conv": False}, "model.kernel_size=4 must be odd"),
        ("train", {"compute": "float8"}, "train.compute='float8' is not one of float32, bfloat16, float16"),
        ("train", {"log_every": 0}, "train.log_every=0 must be at least 1"),
        ("train", {"chunk_sizes": ()}, "train.chunk_sizes=() must be at least 0, and at least one"),
        ("train", {"chunk_sizes": (0, -8)}, "train.chunk_sizes=(0, -8) must be at least 0"),
        ("train", {"num_left_chunks": ()}, "train.num_left_chunks=() must hold at least one"),
        ("data", {"bucket_seconds": (3.0, 2.0)}, "data.bucket_seconds=(3.0, 2.0) must be positive and ascending"),
        ("data", {"batch_seconds": 0.5}, "data.batch_seconds=0.5 must be at least 1"),
        (
            "data",
            {"batch_seconds": 2.0, "bucket_seconds": (3.0,)},
            "data.batch_seconds=2.0 does not hold one utterance of the longest bucket",
        ),
        ("augment", {"speed_factors": (1.0, 0.0)}, "augment.speed_factors=(1.0, 0.0) must be positive"),
        ("tokenizer", {"kind": "word"}, "tokenizer.kind='word' is not one of char, bpe"),
    ],
)
def test_a_value_that_no_run_could_use_is_named(section, values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(**{section: dataclasses.replace(getattr(Config(), section), **values)})


@pytest.mark.parametrize(
    "key, nearest", [("model.encodr_dim", "model.encoder_dim"), ("train.learningrate", "train.learning_rate")]
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    check_key(nearest)
    with pytest.raises(ConfigError, match=re.escape(f"unknown config key {key!r}; did you mean {nearest!r}?")):
        check_key(key)


def test_a_stored_file_that_is_not_a_config_is_named(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))} does not exist: is .* the --workdir"):
        Config.from_json(path)
    for text, message in [
        ("[" * 100_000, "is not valid JSON"),
        ('{"seed": 1', "is not valid JSON"),
        ("[1]", r"\[1\] stands where Config needs"),
        ('{"model": 3}', "3 stands where ModelConfig needs"),
        ('{"model": {"encoder_dims": 3}}', "unknown config key 'encoder_dims'; did you mean 'encoder_dim'"),
        ('{"train": {"keep_checkpoints": 2}}', r"train\.keep_checkpoints is retired \(.*\): remove it from the file"),
        ('{"model": {"num_heads": 5}}', "model.num_heads=5 does not divide"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as error:
            Config.from_json(path)
        assert "\n" not in str(error.value)


def test_a_file_of_an_older_version_takes_the_defaults(tmp_path):
    values = json.loads(Config(seed=5).to_json())
    del values["model"]["dropout"], values["augment"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert Config.from_json(tmp_path / "config.json") == Config(seed=5)


# ----------------------------------------------------------------- the configs


def test_every_config_names_its_command():
    assert FILES
    for path in FILES:
        assert f"python train.py --config=configs/{path.name}" in (load_module(path).__doc__ or ""), path


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_takes_one_update(path):
    """Takes an update with as few layers as possible and short audio; everything else is as the config decides.

    Those that have a model of their own are traced, which finds what does not fit together; those that no other
    resembles are run.
    """
    config = load_module(path).get_config()
    run = path.stem in ("demo", "english_small")
    if not run and "model=ModelConfig(" not in path.read_text():
        return
    layers = 2 if config.train.intermediate_weight else 1
    config = config.replace({"model.num_layers": layers, "model.vocab_size": config.tokenizer.vocab_size + 1})
    config = config.replace({"train.accumulate": 1})  # its parts are more than these utterances
    samples, labels = round(0.8 * config.features.sample_rate), np.array([[1, 2, 3], [4, 4, 0]], np.int32)
    audio = 0.1 * np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    lengths, label_lengths = np.array([samples, samples - 2_000], np.int32), np.array([3, 2], np.int32)
    batch = Batch(audio, lengths, labels, label_lengths, np.ones(2, np.float32))
    bins = config.features.num_mel_bins
    graphdef, state = initial_state(config, np.full(bins, 8.0), np.ones(bins))
    arguments = state, batch, np.int32(max(config.train.chunk_sizes)), np.int32(-1)
    bigram = np.full((config.model.vocab_size,) * 2, 1 / config.model.vocab_size, np.float32)
    step = make_train_step(config, graphdef, None, bigram)
    if not run:
        assert jax.tree.map(jnp.shape, jax.eval_shape(step, *arguments)[0]) == jax.tree.map(jnp.shape, state)
        return
    state, metrics = step(*arguments)
    assert np.isfinite(metrics["loss"]) and metrics["loss"] > 0
    assert state.step == 1 and state.skipped == 0 and metrics["gradient_norm"] > 0


def test_new_front_ends_lie_before_the_network_that_is_shipped():
    shipped = Config.from_json(FOLDER.parent / "models" / "english_small" / "config.json")
    module = load_module(FOLDER / "front_ends.py")
    for front_end in module.FRONT_ENDS:
        config = module.get_config(f"english_small,{front_end}").replace({"model.vocab_size": shipped.model.vocab_size})
        differ = [key for key in config.differences(shipped) if not key.startswith("train.")]
        assert all(key.startswith("model.subsampling") for key in differ)
        assert bool(differ) == (front_end != "depthwise_separable")


@pytest.mark.slow
def test_librispeech_has_the_stated_sizes():
    """The table of its docstring, in millions of parameters, against the models that it makes."""
    module = load_module(FOLDER / "librispeech.py")
    doc = module.__doc__ or ""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in doc.splitlines() if "|" in line]
    stated = {row[0]: row[-2:] for row in rows if row[0] in module.SIZES}
    assert set(stated) == set(module.SIZES)
    for size, numbers in stated.items():
        for subsampling, millions in zip(("depthwise_separable", "vanilla"), numbers, strict=True):
            config = module.get_config(size)
            units = config.tokenizer.vocab_size + 1
            config = config.replace({"model.subsampling": subsampling, "model.vocab_size": units})
            model = nnx.eval_shape(lambda config=config: ConformerCTC(config, rngs=nnx.Rngs(0)))
            assert abs(count_parameters(nnx.state(model, nnx.Param)) / 1e6 / float(millions) - 1) < 0.03
    with pytest.raises(ConfigError, match="huge: choose small, medium or large"):
        module.get_config("huge")


def test_a_batch_holds_the_longest_utterance():
    with pytest.raises(ConfigError, match=r"raise it, or shorten data\.bucket_seconds"):
        Config(data=DataConfig(batch_seconds=5.0, bucket_seconds=(6.0,)))
