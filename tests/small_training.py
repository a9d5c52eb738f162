"""A training state of a few thousand parameters: what the tests of training, checkpoints and devices share."""

import jax
import numpy as np
from flax import nnx
from small_model import FEATURES, SIZES

from conformer.config import AugmentConfig, Config, ModelConfig, TrainConfig
from conformer.data import Batch
from conformer.training.state import TrainState, initial_state


def tiny(compute="float32", **model) -> Config:
    return Config(
        features=FEATURES,
        # Masked frames reach the first layers as exact zeros, whose gradients through LayerNorm float16 cannot hold.
        augment=AugmentConfig(num_freq_masks=0, num_time_masks=0),
        model=ModelConfig(**{**SIZES, "vocab_size": 9, **model}),
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
