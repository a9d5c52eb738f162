"""The PyTorch twin computes what the JAX model computes: the benchmarks compare like with like.

Skipped where the peers' environment does not exist (`make peers`).
"""

import dataclasses
import itertools
import statistics

import jax
import jax.extend
import numpy as np
import pytest
from flax import nnx

from benchmarks import peers, streaming
from benchmarks.training import TWIN, measure, random_batch, save_arrays, table
from conformer.config import AugmentConfig, Config, FeatureConfig, ModelConfig, TrainConfig
from conformer.cost import Workload, operations
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
        positions="learned",
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
        augment=AugmentConfig(num_freq_masks=0, num_time_masks=0),
        model=ModelConfig(**{**sizes, **model}),
        train=TrainConfig(warmup_steps=2, num_steps=10, clip_norm=0.5),
    )


def random_model(config: Config) -> tuple[nnx.GraphDef, nnx.State]:
    """A model with no parameter at zero or one, so that none can be mistaken for another."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(config.seed)

    def draw(leaf):
        centre = 0.5 if leaf.ndim == 1 else 0.0  # scales and biases
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return graphdef, jax.tree.map(draw, shapes)


def random_features(config: Config) -> dict[str, np.ndarray]:
    """Returns inputs of the twin: four utterances, the last of no encoder frame."""
    rng = np.random.default_rng(config.seed)
    return {
        "features": rng.standard_normal((4, 130, config.features.num_mel_bins), np.float32),
        "lengths": np.array([130, 101, 64, 3], np.int32),
        "labels": rng.integers(1, config.model.vocab_size, (4, 5), np.int32),
        "label_lengths": np.full(4, 5, np.int32),
    }


def load(twin: peers.Peer, config: Config, weights, batch: dict[str, np.ndarray], folder) -> None:
    save_arrays(folder / "arrays.npz", weights, batch)
    twin.ask("load", config=dataclasses.asdict(config), arrays=str(folder / "arrays.npz"), num_threads=1)


@pytest.mark.parametrize(
    ("subsampling", "subsampling_factor", "causal_conv"),
    [*itertools.product(["vanilla", "depthwise_separable"], [4, 6, 8], [True]), ("depthwise_separable", 4, False)],
)
def test_logits_agree(twin, tmp_path, subsampling, subsampling_factor, causal_conv):
    config = small_config(subsampling=subsampling, subsampling_factor=subsampling_factor, causal_conv=causal_conv)
    (graphdef, state), batch = random_model(config), random_features(config)
    load(twin, config, peers.flat_weights(state), batch, tmp_path)
    # Traced chunks: one compilation for all masks.
    forward = jax.jit(
        lambda state, features, lengths, chunk, left: nnx.merge(graphdef, state)(
            features, lengths, chunk_size=chunk, num_left_chunks=left
        )
    )
    for chunk_size, num_left_chunks in [(0, -1), (4, -1), (4, 0), (3, 2)]:
        output = tmp_path / "output.npz"
        twin.ask("forward", chunk_size=chunk_size, num_left_chunks=num_left_chunks, output=str(output))
        limits = np.int32(chunk_size), np.int32(num_left_chunks)
        logits, lengths = forward(state, batch["features"], batch["lengths"], *limits)
        with np.load(output) as stored:
            np.testing.assert_array_equal(stored["lengths"], lengths)
            valid = np.arange(logits.shape[1]) < np.asarray(lengths)[:, None]
            assert valid.sum() > 20 and not valid.all()
            np.testing.assert_allclose(stored["logits"][valid], np.asarray(logits)[valid], atol=1e-4)


@pytest.mark.usefixtures("twin")
def test_training_agrees():
    """Loss, gradient, clipping, schedule and update: an error in any of them would part the losses."""
    config = small_config(num_layers=1)
    batch = random_batch(config, utterances=4, seconds=1.3, label_rate=4.0)
    batch = batch._replace(audio_lengths=160 * np.array([130, 101, 77, 60], np.int32))
    result = measure(config, batch, steps=2)
    expected, *others = (row["losses"] for row in result["rows"].values())
    assert expected[-1] < expected[0] - 0.05
    for losses in others:
        np.testing.assert_allclose(losses, expected, rtol=1e-4)

    times = [row["seconds"] for row in result["rows"].values()]
    medians = [statistics.median(seconds) for seconds in times]
    assert [len(seconds) for seconds in times] == [6, 6, 6]
    assert result["ratio"] == min(medians[1:]) / medians[0]
    assert "PyTorch eager, heap kept" in table(result)


def test_twin_drops_out_in_training(twin, tmp_path):
    """The first update's learning rate is zero: only dropout can change the loss."""
    config = small_config(dropout=0.2)
    _, state = random_model(config)
    load(twin, config, peers.flat_weights(state), random_features(config), tmp_path)
    first, second = twin.ask("train", steps=2)["losses"]
    assert first != second


def test_peer_that_fails_is_named(twin, capfd):
    with peers.Peer("benchmarks.no_such_peer") as peer, pytest.raises(peers.PeerError, match="no_such_peer ended with"):
        peer.ask("load")
    assert "No module named" in capfd.readouterr().err


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


@pytest.mark.parametrize(("subsampling_factor", "num_left_chunks"), [(4, 2), (6, 0), (8, 1)])
@pytest.mark.usefixtures("twin")
def test_streaming_step_agrees(tmp_path, subsampling_factor, num_left_chunks):
    config, chunk_size = small_config(subsampling_factor=subsampling_factor), 4
    graphdef, state = random_model(config)
    model = nnx.merge(graphdef, jax.device_put(state))
    shape = (6, 1, model.encoder.subsampling.window(chunk_size), config.features.num_mel_bins)
    windows = np.random.default_rng(0).standard_normal(shape, np.float32)
    streaming.save_inputs(tmp_path, config, peers.flat_weights(state), windows)
    chunking = {"chunk_size": chunk_size, "num_left_chunks": num_left_chunks}
    with peers.Peer(streaming.TWIN) as peer:
        peer.ask("load", folder=str(tmp_path), compiled=False, **chunking)
        peer.ask("follow", output=str(tmp_path / "output.npy"))

    @jax.jit
    def step(cache, window):
        x, cache = model.encoder.step(cache, model.standardise(window))
        return jax.nn.log_softmax(model.head(x)), cache

    cache = model.encoder.initial_cache(1, **chunking)
    for window, found in zip(windows, np.load(tmp_path / "output.npy"), strict=True):
        expected, cache = step(cache, window)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_streams_are_measured(twin, monkeypatch):
    contestants = {name: streaming.CONTESTANTS[name] for name in (streaming.REFERENCE, "PyTorch eager")}
    monkeypatch.setattr(streaming, "CONTESTANTS", contestants)
    monkeypatch.setattr(streaming, "ROUNDS", 2)
    config = small_config().replace({"train.chunk_sizes": (4,)})
    result = streaming.measure(config, chunk_size=4, num_left_chunks=2, chunks=3)
    ours, theirs = result["rows"].values()
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 6
    assert ours["difference"] == 0 < theirs["difference"] < 1e-4
    assert theirs["speed"] == statistics.median(ours["seconds"]) / statistics.median(theirs["seconds"])
    assert theirs["weight_bytes"] == ours["weight_bytes"] > 4 * result["num_parameters"]  # statistics come on top
    # Of a block, 2 * 4 * 32 + 4 * 16 values; of the frames seen, one.
    assert result["state_bytes"] == 4 * (2 * (8 * 32 + 4 * 16) + 1)
    assert "PyTorch eager" in streaming.table(result)


def test_wrong_contestant_is_named(tmp_path):
    class Process(peers.Peer):
        def __init__(self, value):
            self.value = value

        def ask(self, command, **arguments):
            np.save(arguments["output"], np.full(3, self.value))
            return {}

    processes: dict[str, peers.Peer] = {streaming.REFERENCE: Process(0.0), "ONNX Runtime float32": Process(0.5)}
    with pytest.raises(streaming.DisagreementError, match=r"ONNX Runtime float32: .* by 0\.5"):
        streaming._compare({name: {} for name in processes}, processes, tmp_path)


@pytest.mark.parametrize("subsampling", ["vanilla", "depthwise_separable"])
@pytest.mark.parametrize("subsampling_factor", [4, 6, 8])
def test_operations_are_those_of_the_step(subsampling, subsampling_factor):
    """The counts equal those of the products of matrices and convolutions in the traced step."""
    config = small_config(subsampling=subsampling, subsampling_factor=subsampling_factor)
    graphdef, state = random_model(config)
    model = nnx.merge(graphdef, jax.device_put(state))
    cache = model.encoder.initial_cache(1, 5, 3)
    window = np.zeros((1, model.encoder.subsampling.window(5), config.features.num_mel_bins), np.float32)
    traced = jax.make_jaxpr(lambda cache, window: model.head(model.encoder.step(cache, window)[0]))(cache, window)
    counted = operations(config, Workload.chunk(config, 5, 3))
    assert sum(o.macs for o in counted if o.matrix or o.name == "dense") == count_products(traced.jaxpr)


def count_products(jaxpr) -> int:
    """Multiplications in the products of matrices and convolutions of a jaxpr."""
    products = 0
    for equation in jaxpr.eqns:
        size = equation.outvars[0].aval.size
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), left = equation.params["dimension_numbers"], equation.invars[0].aval
            products += size * int(np.prod([left.shape[axis] for axis in contracted]))
        elif equation.primitive.name == "conv_general_dilated":
            products += size * int(np.prod(equation.invars[1].aval.shape[:-1]))  # taps and inputs of each output
        elif equation.primitive.name == "custom_vjp_call" and equation.invars[0].aval.shape[-1] == 1:
            products += size * int(np.prod(equation.invars[1].aval.shape[:-1]))  # the first convolution: one channel in
        products += sum(map(count_products, jax.extend.core.jaxprs_in_params(equation.params)))
    return products
