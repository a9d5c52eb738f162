"""A model of a few thousand parameters and a sound for it: what the tests of the network and of streams share."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.config import Config, FeatureConfig, ModelConfig, TrainConfig
from conformer.model import ConformerCTC
from conformer.tokenizer import CharTokenizer

RATE = 8_000
TOKENIZER = CharTokenizer(["<blk>", "▁", *"abcdef"])
FEATURES = FeatureConfig(sample_rate=RATE, num_mel_bins=24, high_freq=3_800.0)
SIZES: dict[str, Any] = dict(
    positions="learned",
    subsampling_channels=4,
    encoder_dim=16,
    num_layers=1,
    num_heads=2,
    feed_forward_dim=24,
    kernel_size=5,
    max_relative_distance=6,
)


def make_config(subsampling="depthwise_separable", factor=4, **model) -> Config:
    sizes: dict[str, Any] = SIZES | dict(
        subsampling=subsampling, subsampling_factor=factor, num_layers=2, vocab_size=TOKENIZER.vocab_size
    )
    return Config(
        features=dataclasses.replace(FEATURES, trailing_silence=0.5),
        model=ModelConfig(**sizes | model),
        train=TrainConfig(chunk_sizes=(0, 3, 4, 7)),
    )


@functools.cache
def make_model(subsampling="depthwise_separable", factor=4, causal_conv=False, **sizes) -> tuple[Config, ConformerCTC]:
    """A model none of whose parameters is zero, so that nothing is hidden by its initial value."""
    config = make_config(subsampling, factor, causal_conv=causal_conv, **sizes)
    model = random_model(config, seed=1, vectors=0.3)
    model.feature_mean[...] = jnp.full(24, 12.0)  # about what `sound` has
    return config, model


def random_model(config: Config, *, seed: int, vectors: float) -> ConformerCTC:
    """Every parameter drawn from a normal distribution: scales around one, vectors `vectors` wide, matrices 0.4."""
    shapes = nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0)))  # compiling the initialisers takes seconds
    graphdef, state = nnx.split(shapes)
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        one = "scale" in str(path[-2:])  # of norms and of the features
        if "variance" in str(path[-2:]):
            return jnp.asarray(rng.uniform(0.5, 2.0, leaf.shape), jnp.float32)
        return jnp.asarray(one + (vectors if leaf.ndim == 1 else 0.4) * rng.standard_normal(leaf.shape, np.float32))

    return nnx.merge(graphdef, jax.tree.map_with_path(value, state))


def sound(samples, seed=0):
    """Tones of 60 ms in noise: frames differ, and so does what a model makes of them.

    Without so much noise, bins that hold next to nothing would show the rounding of the two front ends' FFTs.
    """
    rng = np.random.default_rng(seed)
    frequencies = np.repeat(rng.uniform(100, 3_500, samples // 480 + 1), 480)[:samples]
    tone = 0.3 * np.sin(2 * np.pi * np.cumsum(frequencies) / RATE)
    return (tone + 0.05 * rng.standard_normal(samples)).astype(np.float32)
