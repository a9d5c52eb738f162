"""The PyTorch twin computes what the JAX model computes: the benchmarks compare like with like.

Skipped where the peers' environment does not exist (`make peers`).
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import peers
from benchmarks.training import TWIN, FeatureBatch, JaxTrainer, measure, save_arrays, table
from conformer.config import Config, FeatureConfig, ModelConfig, TrainConfig
from conformer.model import ConformerCTC


@pytest.fixture(scope="module")
def twin():
    try:
        peers.peers_python()
    except peers.PeerError as error:
        pytest.skip(str(error))
    with peers.Peer(TWIN) as peer:
        yield peer


def small_config(**model) -> Config:
    sizes = dict(
        subsampling_channels=6,
        encoder_dim=16,
        num_layers=2,
        num_heads=2,
        feed_forward_dim=24,
        kernel_size=5,
        max_relative_distance=3,
        dropout=0.0,
        vocab_size=9,
    )
    return Config(
        features=FeatureConfig(num_mel_bins=40),
        model=ModelConfig(**{**sizes, **model}),
        train=TrainConfig(warmup_steps=2, num_steps=10, clip_norm=0.5),
    )


def random_model(config: Config) -> ConformerCTC:
    """No parameter left at zero or one, so that none can be mistaken for another."""
    model = ConformerCTC(config, rngs=nnx.Rngs(config.seed))
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(np.float32), nnx.state(model))
    nnx.update(model, noisy)
    return model


def random_batch(config: Config) -> FeatureBatch:
    batch = FeatureBatch.random(config, utterances=4, seconds=1.3, label_rate=4.0)
    return dataclasses.replace(batch, lengths=np.array([130, 101, 64, 3], np.int32))


def load(twin: peers.Peer, config: Config, weights, batch: FeatureBatch, folder) -> None:
    save_arrays(folder / "arrays.npz", weights, batch)
    twin.ask("load", config=dataclasses.asdict(config), arrays=str(folder / "arrays.npz"), num_threads=1)


@pytest.mark.parametrize("causal_conv", [True, False])
@pytest.mark.parametrize("subsampling_factor", [4, 6, 8])
@pytest.mark.parametrize("subsampling", ["vanilla", "depthwise_separable"])
def test_logits_agree(twin, tmp_path, subsampling, subsampling_factor, causal_conv):
    config = small_config(subsampling=subsampling, subsampling_factor=subsampling_factor, causal_conv=causal_conv)
    model, batch = random_model(config), random_batch(config)
    load(twin, config, peers.flat_weights(nnx.state(model)), batch, tmp_path)
    # Traced chunks: one compilation for all masks.
    graphdef, state = nnx.split(model)
    forward = jax.jit(
        lambda features, lengths, chunk, left: nnx.merge(graphdef, state)(
            features, lengths, chunk_size=chunk, num_left_chunks=left
        )
    )
    for chunk_size, num_left_chunks in [(0, -1), (4, -1), (4, 0), (3, 2)]:
        output = tmp_path / "output.npz"
        twin.ask("forward", chunk_size=chunk_size, num_left_chunks=num_left_chunks, output=str(output))
        logits, lengths = forward(batch.features, batch.lengths, np.int32(chunk_size), np.int32(num_left_chunks))
        with np.load(output) as stored:
            np.testing.assert_array_equal(stored["lengths"], lengths)
            valid = np.arange(logits.shape[1]) < np.asarray(lengths)[:, None]
            assert valid.sum() > 20 and not valid.all()
            np.testing.assert_allclose(stored["logits"][valid], np.asarray(logits)[valid], atol=1e-4)


def test_training_agrees(twin, tmp_path):
    """Loss, gradient, clipping, schedule and update: an error in any of them would part the losses."""
    config = small_config()
    batch = dataclasses.replace(random_batch(config), lengths=np.array([130, 101, 77, 60], np.int32))
    trainer = JaxTrainer(config, batch)
    load(twin, config, trainer.weights, batch, tmp_path)
    expected, got = trainer.train(6)["losses"], twin.ask("train", steps=6)["losses"]
    assert expected[-1] < expected[0] - 0.05
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_dropout_is_on_in_training(twin, tmp_path):
    """Losses of the first two steps differ, though the first step's learning rate is zero."""
    config = small_config(dropout=0.2)
    batch = dataclasses.replace(random_batch(config), lengths=np.array([130, 101, 77, 60], np.int32))
    trainer = JaxTrainer(config, batch)
    load(twin, config, trainer.weights, batch, tmp_path)
    for losses in (trainer.train(2)["losses"], twin.ask("train", steps=2)["losses"]):
        assert losses[0] != losses[1]


def test_record_holds_every_time(twin):
    config = small_config()
    result = measure(config, FeatureBatch.random(config, utterances=2, seconds=1.0), steps=1)
    times = [row["seconds"] for row in result["rows"].values()]
    assert [len(seconds) for seconds in times] == [3, 3, 3]
    medians = [sorted(seconds)[1] for seconds in times]
    assert result["ratio"] == min(medians[1:]) / medians[0]
    assert "PyTorch eager, heap kept" in table(result)


def test_other_weights_are_refused(twin, tmp_path, capfd):
    config = small_config()
    weights = peers.flat_weights(nnx.state(random_model(config)))
    save_arrays(tmp_path / "arrays.npz", weights, random_batch(config))
    other = dataclasses.asdict(small_config(num_layers=3))
    with peers.Peer(TWIN) as peer, pytest.raises(peers.PeerError, match=r"ended with status 1 at 'load'"):
        peer.ask("load", config=other, arrays=str(tmp_path / "arrays.npz"), num_threads=1)
    assert "encoder.blocks.2" in capfd.readouterr().err


def test_missing_environment_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "ENVIRONMENT", tmp_path / ".venv-peers")
    with pytest.raises(peers.PeerError, match="make peers"):
        peers.Peer(TWIN)


def test_no_python_names_the_version(monkeypatch, tmp_path):
    """A shim that fails, as pyenv leaves for versions that are not selected, is passed over."""
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(peers.PeerError, match=r"no python3\.11 .*install Python 3\.11"):
        peers.find_python()
