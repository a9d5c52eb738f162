"""A training state of a few thousand parameters: what the tests of training, checkpoints and devices share."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from conformer.config import AugmentConfig, Config, FeatureConfig, ModelConfig, TrainConfig
from conformer.data import Batch
from conformer.training.state import TrainState, initial_state

RATE = 8_000


def tiny(compute="float32", **model) -> Config:
    sizes: dict[str, Any] = dict(
        positions="learned",
        subsampling_channels=4,
        encoder_dim=16,
        num_layers=1,
        num_heads=2,
        feed_forward_dim=24,
        kernel_size=5,
        max_relative_distance=6,
        vocab_size=9,
    )
    return Config(
        features=FeatureConfig(sample_rate=RATE, num_mel_bins=24, high_freq=3_800.0),
        # Masked frames reach the first layers as exact zeros, whose gradients through LayerNorm float16 cannot hold.
        augment=AugmentConfig(num_freq_masks=0, num_time_masks=0),
        model=ModelConfig(**sizes | model),
        train=TrainConfig(compute=compute, num_steps=100, warmup_steps=1),
    )


def start(config: Config) -> tuple[nnx.GraphDef, TrainState]:
    return initial_state(config, np.full(24, 8.0), np.full(24, 3.0))


def batch_of_noise(amplitude=0.1) -> Batch:
    rng = np.random.default_rng(0)
    audio = (amplitude * rng.standard_normal((3, 6_000))).astype(np.float32)
    return Batch(
        audio=audio,
        audio_lengths=np.array([6_000, 4_500, 6_000], np.int32),
        labels=np.array([[1, 2, 3, 3], [4, 5, 0, 0], [0, 0, 0, 0]], np.int32),
        label_lengths=np.array([4, 2, 0], np.int32),
        weights=np.array([1, 1, 0], np.float32),
    )


def arrays(state) -> dict[str, np.ndarray]:
    """A copy by name, so that nothing changes it afterwards."""
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def assert_same(left: dict, right: dict):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)
