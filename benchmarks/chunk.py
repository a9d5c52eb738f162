"""The chunk that streams are measured by: sizes, models with random weights, and its time in the engine."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import energy, harness
from conformer.config import Config, ModelConfig, TrainConfig
from conformer.cost import Workload
from conformer.model import ConformerCTC
from conformer.numerics import apply_policy
from conformer.streaming.engine import Engine

CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4
ENERGY_SECONDS = 2.0  # for which a model runs while its energy is counted


def benchmark_config() -> Config:
    """About 20 M parameters."""
    train = TrainConfig(chunk_sizes=(CHUNK_SIZE,), num_left_chunks=(NUM_LEFT_CHUNKS,))
    return Config(model=model_config(256, num_layers=12, vocab_size=500), train=train)


def model_config(width: int, *, num_layers: int, vocab_size: int) -> ModelConfig:
    """Returns the configuration of a model of the usual proportions, `width` channels wide."""
    return ModelConfig(
        subsampling="depthwise_separable",
        subsampling_factor=4,
        subsampling_channels=width,
        encoder_dim=width,
        num_layers=num_layers,
        num_heads=4,
        feed_forward_dim=4 * width,
        kernel_size=15,
        positions="learned",  # as the PyTorch peer and the shipped models have
        dropout=0.1,
        vocab_size=vocab_size,
    )


def random_model(config: Config) -> ConformerCTC:
    """The same for the same configuration. What training begins with at zero or one counts too."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(config.seed)

    def draw(path: tuple, leaf: jax.Array) -> jax.Array:
        around = 1.0 if "scale" in str(path[-2:]) else 0.0  # of norms and of the features
        return jnp.asarray(around + 0.05 * rng.standard_normal(leaf.shape, np.float32))

    return nnx.merge(graphdef, jax.tree.map_with_path(draw, shapes))


def chunk_seconds(
    config: Config,
    workload: Workload,
    chunks: int,
    numerics: str = "float32",
    clock: Callable[[], float] = time.process_time,
    counter: energy.Counter | None = None,
) -> tuple[float, float | None]:
    """Seconds of a chunk of each stream through the engine, the lower quartile; its joules where they are counted."""
    chunk_size, batch_size = workload.frames, workload.batch_size
    left = workload.past // chunk_size
    config = config.replace({"train.chunk_sizes": (chunk_size,)})
    model = apply_policy(random_model(config), numerics)
    engine = Engine(config, model, chunk_size=chunk_size, num_left_chunks=left, batch_size=batch_size)
    engine.warm_up()
    rng = np.random.default_rng(0)
    window = rng.standard_normal((batch_size, engine.framing.window, config.features.num_mel_bins), np.float32)
    num_frames = np.full(batch_size, chunk_size, np.int32)
    seconds = float(
        np.quantile([harness.seconds(lambda: engine(window, num_frames), clock) for _ in range(chunks)], 0.25)
    )
    repeats = max(chunks, math.ceil(ENERGY_SECONDS / seconds))
    joules = energy.joules(lambda: [engine(window, num_frames) for _ in range(repeats)], counter)
    return seconds, joules and joules / repeats
