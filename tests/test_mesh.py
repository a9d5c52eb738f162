"""Training on several devices: the curve, the place of the state, checkpoints between numbers of devices.

Eight devices are shares of this machine's processor, in a process of their own (`python tests/test_mesh.py FOLDER`).
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from small_model import FEATURES, SIZES
from small_training import arrays, assert_same

from conformer.config import AugmentConfig, Config, ConfigError, ModelConfig, TrainConfig
from conformer.data import Batch, Share
from conformer.training.checkpoint import Checkpoints
from conformer.training.mesh import make_mesh, partitionable, place_batch, place_state, share_of
from conformer.training.state import TrainState, initial_state
from conformer.training.step import make_train_step

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 4
FULL = (np.int32(0), np.int32(-1))


def small() -> Config:
    """Returns a configuration with dropout and masks, wide enough that arrays are spread and that Muon updates some."""
    return Config(
        features=dataclasses.replace(FEATURES, dither=1.0),
        augment=AugmentConfig(freq_mask_width=8, time_mask_width=10),
        model=ModelConfig(**{**SIZES, "encoder_dim": 32, "feed_forward_dim": 48, "dropout": 0.1, "vocab_size": 9}),
        train=TrainConfig(optimiser="muon", num_steps=100, warmup_steps=1),
    )


def three_rows(filled: int = 3) -> Batch:
    """Three utterances, in so many rows."""
    rng = np.random.default_rng(0)
    batch = Batch(
        audio=(0.1 * rng.standard_normal((3, 6_000))).astype(np.float32),
        audio_lengths=np.array([6_000, 4_500, 5_000], np.int32),
        labels=np.array([[1, 2, 3, 3], [4, 5, 0, 0], [6, 7, 8, 0]], np.int32),
        label_lengths=np.array([4, 2, 3], np.int32),
        weights=np.ones(3, np.float32),
    )
    batch = Batch(*(np.pad(array, [(0, filled - 3)] + [(0, 0)] * (array.ndim - 1)) for array in batch))
    batch.audio_lengths[3:] = 6_000
    return batch


def on_mesh(config: Config, fsdp: int, devices: int) -> tuple:
    """(mesh, graphdef, state)."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    graphdef, state = initial_state(
        partitionable(config, mesh), np.full(FEATURES.num_mel_bins, 8.0), np.full(FEATURES.num_mel_bins, 3.0)
    )
    return mesh, graphdef, place_state(mesh, state)


def curve(config: Config, fsdp: int, devices: int) -> tuple[list[float], TrainState]:
    """The losses of a few updates, and the state after them."""
    mesh, graphdef, state = on_mesh(config, fsdp, devices)
    step, losses = make_train_step(config, graphdef, mesh), []
    batch = three_rows(len(share_of(mesh, config.train.accumulate).rows(3)))
    for _ in range(STEPS):
        state, metrics = step(state, place_batch(mesh, batch), *FULL)
        losses.append(float(metrics["loss"]))
    return losses, state


def share(state: TrainState) -> float:
    """The part of the parameters, their average and the optimiser's state that the first device holds."""
    leaves = jax.tree.leaves((state.params, state.average, state.optimiser))
    return sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)


def check_on_eight_devices(folder: pathlib.Path) -> None:
    assert len(jax.devices()) == 8
    config = small()
    expected, alone = curve(config, 1, 1)
    assert len(set(expected)) == STEPS  # dropout and masks differ, and the parameters move
    for fsdp, largest in ((1, 1.0), (8, 0.3)):
        losses, state = curve(config, fsdp, 8)
        np.testing.assert_allclose(losses, expected, rtol=1e-4, err_msg=f"fsdp={fsdp}")
        assert 1 / fsdp <= share(state) <= largest, (fsdp, share(state))
        for leaf in jax.tree.leaves(state):
            assert len(leaf.sharding.device_set) == 8
    assert share(alone) == 1

    config = config.replace({"train.accumulate": 2})
    np.testing.assert_allclose(curve(config, 2, 4)[0], curve(config, 1, 1)[0], rtol=1e-4, err_msg="accumulated")

    checkpoints = Checkpoints(folder)
    checkpoints.save(STEPS, state)
    checkpoints.wait()
    stored: dict[str, Any] = arrays(state)
    np.savez(folder / "stored.npz", **stored)
    for fsdp, devices in ((2, 2), (4, 8), (1, 1)):
        empty = on_mesh(config, fsdp, devices)[2]
        restored = Checkpoints(folder).restore(empty)
        assert_same(arrays(restored), stored)
        for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(empty), strict=True):
            assert left.sharding == right.sharding


def test_eight_devices_train_as_one_and_share_the_state(tmp_path):
    """This process, which has one device, then restores their checkpoint to arrays and to mere shapes."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",  # compiling is most of the test
    }
    result = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "stored.npz") as file:
        stored = dict(file)
    state = on_mesh(small(), 1, 1)[2]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    for target in (state, shapes):
        assert_same(arrays(Checkpoints(tmp_path).restore(target)), stored)


def test_an_accumulated_gradient_is_that_of_the_whole_batch():
    without = {"augment.num_freq_masks": 0, "augment.num_time_masks": 0, "features.dither": 0, "model.dropout": 0}
    config = small().replace(without)
    whole = curve(config, 1, 1)[0]
    config = config.replace({"train.accumulate": 2})
    np.testing.assert_allclose(curve(config, 1, 1)[0], whole, rtol=1e-5)


def test_shares_of_a_batch_are_its_rows():
    for batch_size, devices, accumulate, count in ((5, 4, 1, 2), (8, 8, 1, 4), (3, 2, 3, 2), (7, 1, 1, 1)):
        shares = [Share(index, count, devices, accumulate).rows(batch_size) for index in range(count)]
        rows = [row for share in shares for row in share]
        assert rows == list(range(len(rows))) and len(rows) >= batch_size
        assert {len(share) for share in shares} == {len(rows) // count} and len(rows) % (devices * accumulate) == 0


def test_what_no_mesh_can_do_is_named():
    with pytest.raises(ConfigError, match=r"train\.fsdp=2 does not divide the 1 devices.*: choose one of 1$"):
        make_mesh(2, jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"train\.fsdp=0 must be at least 1"):
        Config(train=TrainConfig(fsdp=0))


if __name__ == "__main__":
    check_on_eight_devices(pathlib.Path(sys.argv[1]))
