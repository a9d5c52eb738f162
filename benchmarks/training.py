"""A full training step, log-mel features to updated parameters, in JAX and in the PyTorch twin.

Both do the same work on the same batch from the same weights: forward with dropout, CTC loss, gradient, clipping,
AdamW (`tests/test_torch_twin.py` shows that without dropout their losses stay equal from step to step). PyTorch is
measured as it comes and with the allocator settings that `conformer/runtime.py` makes for JAX; the faster counts.
"""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks.peers import Peer, flat_weights, peers_python
from conformer import record, runtime, system
from conformer.config import Config, ModelConfig, TrainConfig
from conformer.ctc import ctc_loss
from conformer.training.state import count_parameters, make_model, make_optimiser

TWIN = "benchmarks.torch_peer.training"
ROUNDS = 3  # blocks of steps of each contestant, in turn
WARM_UP = 2  # steps not counted, after compilation
# The settings of `conformer.runtime.set_up`, by the names glibc reads when a process starts.
HEAP_KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**64 - 1),  # never
    "MALLOC_TOP_PAD_": str(256 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}


def benchmark_config(compute: str) -> Config:
    """About 10 M parameters."""
    return Config(
        model=ModelConfig(
            subsampling="depthwise_separable",
            subsampling_factor=4,
            subsampling_channels=176,
            encoder_dim=176,
            num_layers=13,
            num_heads=4,
            feed_forward_dim=704,
            kernel_size=15,
            dropout=0.1,
            vocab_size=128,
        ),
        train=TrainConfig(compute=compute),
    )


@dataclasses.dataclass(frozen=True)
class FeatureBatch:
    """Utterances of equal length, as random features and labels: a step takes the same time for any values."""

    features: np.ndarray  # float32 [utterances, frames, mel]
    lengths: np.ndarray  # int32 [utterances], feature frames
    labels: np.ndarray  # int32 [utterances, labels]
    label_lengths: np.ndarray  # int32 [utterances]

    @classmethod
    def random(cls, config: Config, utterances: int = 16, seconds: float = 8.0, label_rate: float = 8.0):
        """`label_rate` labels a second, as spelled by about a hundred units."""
        rng = np.random.default_rng(config.seed)
        frames = round(seconds * 1000 / config.features.frame_shift_ms)
        num_labels = round(seconds * label_rate)
        return cls(
            rng.standard_normal((utterances, frames, config.features.num_mel_bins), np.float32),
            np.full(utterances, frames, np.int32),
            rng.integers(1, config.model.vocab_size, (utterances, num_labels), np.int32),
            np.full(utterances, num_labels, np.int32),
        )

    def arrays(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class JaxTrainer:
    """The JAX model, its optimiser and one batch; the counterpart of the twin's `Trainer`."""

    def __init__(self, config: Config, batch: FeatureBatch, chunk_size: int = 0, num_left_chunks: int = -1):
        self._chunks = np.int32(chunk_size), np.int32(num_left_chunks)
        graphdef, params, self._statistics = make_model(config, compute=config.train.compute)
        self.weights = flat_weights(params, self._statistics)
        self.num_parameters = count_parameters(params)
        self._state = (params, make_optimiser(config.train).init(params))
        self._batch = {name: jax.device_put(array) for name, array in batch.arrays().items()}
        self._index = 0
        start = time.perf_counter()
        self._step = make_step(config, graphdef).lower(*self._arguments()).compile()
        self.compile_seconds = time.perf_counter() - start

    def train(self, steps: int) -> dict:
        """Updates the model `steps` times; seconds and loss of each step."""
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            self._state, loss = self._step(*self._arguments())
            jax.block_until_ready((self._state, loss))
            seconds.append(time.perf_counter() - start)
            losses.append(float(loss))
            self._index += 1
        return {"seconds": seconds, "losses": losses, "peak_memory_mib": system.peak_memory_mib()}

    def _arguments(self):
        # The chunk is an argument, as it is in training, where it changes from batch to batch.
        return self._state, self._statistics, self._batch, np.int32(self._index), *self._chunks


def make_step(config: Config, graphdef: nnx.GraphDef) -> Callable:
    """The update of `conformer/training/step.py` from features on, without its augmentation and bookkeeping."""
    optimiser = make_optimiser(config.train)

    def loss_fn(params, statistics, batch, chunk_size, num_left_chunks, key):
        model = nnx.merge(graphdef, params, statistics)
        x, lengths = model.encoder(
            model.normalise(batch["features"]),
            batch["lengths"],
            chunk_size=chunk_size,
            num_left_chunks=num_left_chunks,
            dropout_key=key,
        )
        loss = ctc_loss(model.head(x), lengths, batch["labels"], batch["label_lengths"])
        return loss.sum() / batch["label_lengths"].sum()

    @jax.jit(donate_argnums=0)
    def step(state, statistics, batch, index, chunk_size, num_left_chunks):
        params, optimiser_state = state
        key = jax.random.fold_in(jax.random.key(config.seed, impl="rbg"), index)
        loss, gradient = jax.value_and_grad(loss_fn)(params, statistics, batch, chunk_size, num_left_chunks, key)
        updates, optimiser_state = optimiser.update(gradient, optimiser_state, params)
        return (optax.apply_updates(params, updates), optimiser_state), loss

    return step


def measure(config: Config, batch: FeatureBatch, steps: int) -> dict:
    """Times JAX and both rows of PyTorch in alternating blocks of `steps` steps.

    Returns:
        the record: "rows", each with its median and all its times in seconds, and "ratio", the median of the faster
        PyTorch row over JAX's (above 1: JAX is faster). Raises PeerError without the peers' environment.
    """
    circumstances = record.describe_run()
    cores = len(system.cores())
    peers_python()  # fails here rather than after the compilation
    jax_trainer = JaxTrainer(config, batch)
    with Peer(TWIN) as plain, Peer(TWIN, HEAP_KEPT) as kept, tempfile.TemporaryDirectory() as folder:
        arrays = pathlib.Path(folder) / "arrays.npz"
        save_arrays(arrays, jax_trainer.weights, batch)
        rows: dict[str, dict[str, Any]] = {
            "JAX": {"versions": record.versions("jax", "jaxlib", "flax", "optax", "numpy")}
        }
        trainers: dict[str, Callable[[int], dict]] = {"JAX": jax_trainer.train}
        for name, peer in {"PyTorch eager": plain, "PyTorch eager, heap kept": kept}.items():
            reply = peer.ask("load", config=dataclasses.asdict(config), arrays=str(arrays), num_threads=cores)
            rows[name] = {"versions": reply}
            trainers[name] = lambda n, peer=peer: peer.ask("train", steps=n)
        _run_rounds(rows, trainers, steps)
    for row in rows.values():
        row["median_seconds"] = statistics.median(row["seconds"])
    rows["JAX"]["compile_seconds"] = jax_trainer.compile_seconds
    median, *others = (row["median_seconds"] for row in rows.values())
    return {
        "benchmark": "training",
        **circumstances,
        "config": dataclasses.asdict(config),
        "num_parameters": jax_trainer.num_parameters,
        "batch": {name: list(array.shape) for name, array in batch.arrays().items()},
        "threads": cores,
        "rounds": ROUNDS,
        "steps": steps,
        "rows": rows,
        "ratio": min(others) / median,
    }


def save_arrays(path: str | pathlib.Path, weights: dict[str, np.ndarray], batch: FeatureBatch) -> None:
    """Writes what the twin's "load" reads."""
    arrays: dict[str, Any] = {f"weights/{name}": array for name, array in weights.items()}
    np.savez(path, **arrays, **batch.arrays())


def _run_rounds(rows: dict[str, dict[str, Any]], trainers: dict[str, Callable[[int], dict]], steps: int) -> None:
    """Fills in "seconds", "losses" and "peak_memory_mib" of each row."""
    for name, train in trainers.items():
        rows[name].update(seconds=[], losses=train(WARM_UP)["losses"])
    for turn in range(ROUNDS):
        # Back and forth, so that a machine that slows down or speeds up favours nobody.
        for name in list(trainers)[:: 1 if turn % 2 == 0 else -1]:
            result = trainers[name](steps)
            rows[name]["seconds"] += result["seconds"]
            rows[name]["losses"] += result["losses"]
            rows[name]["peak_memory_mib"] = result["peak_memory_mib"]


def table(result: dict) -> str:
    """The record for a reader."""
    utterances, frames, bins = result["batch"]["features"]
    compute = result["config"]["train"]["compute"]
    lines = [
        f"Training step: {result['num_parameters'] / 1e6:.2f} M parameters, {compute}, {utterances} utterances of "
        f"{frames} x {bins} features; {result['device']['cpu']}, {result['threads']} threads",
        f"{'':26}{'median':>9}{'fastest':>9}{'slowest':>9}{'peak memory':>13}",
    ]
    for name, row in result["rows"].items():
        times = (row["median_seconds"], min(row["seconds"]), max(row["seconds"]))
        memory = row["peak_memory_mib"]
        memory = "unknown" if memory is None else f"{memory:.0f} MiB"
        lines.append(f"{name:26}" + "".join(f"{seconds:7.3f} s" for seconds in times) + f"{memory:>13}")
    lines.append(f"JAX compiles in {result['rows']['JAX']['compile_seconds']:.1f} s (not counted above).")
    lines.append(f"Faster PyTorch row / JAX: {result['ratio']:.2f}")
    if (load := result["load_average"]) > 0.5:
        lines.append(
            f"The load average was {load:.1f} at the start: other work slows the rows unequally. Measure again."
        )
    return "\n".join(lines)


def run(steps: int, compute: str) -> dict:
    """`bench.py training`."""
    runtime.set_up()
    jax.config.update("jax_enable_compilation_cache", False)  # a compile time from the cache would be none
    config = benchmark_config(compute)
    return measure(config, FeatureBatch.random(config), steps)
