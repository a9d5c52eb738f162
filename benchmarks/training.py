"""A full training step of the product, audio to updated parameters, beside one of the PyTorch twin.

Both work on the same batch from the same weights: forward with dropout, CTC loss, gradient, clipping, AdamW
(`tests/test_torch_twin.py` shows that without dropout their losses stay equal from step to step). The twin is given
log-mel features and keeps no averaged weights; the product's step computes both. PyTorch is measured as it comes and
with the allocator settings that `conformer/runtime.py` makes for JAX; the faster counts.
"""

import dataclasses
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks.chunk import model_config
from benchmarks.peers import Peer, flat_weights, peers_python
from conformer import record, system
from conformer.config import AugmentConfig, Config, TrainConfig
from conformer.data import Batch
from conformer.features import log_mel
from conformer.training.run import Trainer
from conformer.training.state import count_parameters

TWIN = "benchmarks.torch_peer.training"
ROUNDS = 3  # blocks of steps of each contestant, in turn
WARM_UP = 2  # steps not counted, after compilation
WHOLE = np.int32(0), np.int32(-1)  # chunk size, left context
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
        augment=AugmentConfig(num_freq_masks=0, num_time_masks=0),
        model=model_config(176, num_layers=13, vocab_size=128),
        train=TrainConfig(compute=compute),
    )


def random_batch(config: Config, utterances: int = 16, seconds: float = 8.0, label_rate: float = 8.0) -> Batch:
    """Noise of equal length with random labels, `label_rate` a second: a step takes the same time for any values."""
    rng = np.random.default_rng(config.seed)
    samples, labels = round(seconds * config.features.sample_rate), round(seconds * label_rate)
    return Batch(
        audio=(0.1 * rng.standard_normal((utterances, samples))).astype(np.float32),
        audio_lengths=np.full(utterances, samples, np.int32),
        labels=rng.integers(1, config.model.vocab_size, (utterances, labels), np.int32),
        label_lengths=np.full(utterances, labels, np.int32),
        weights=np.ones(utterances, np.float32),
    )


class Steps:
    """Training steps on one batch, as `train.py` makes them; the counterpart of the twin's `Trainer`."""

    def __init__(self, config: Config, batch: Batch, chunk: tuple[np.int32, np.int32] = WHOLE):
        bins = config.features.num_mel_bins
        self.trainer = Trainer(config, np.full(bins, 8.0), np.full(bins, 3.0))
        self.weights = flat_weights(self.trainer.state.params, self.trainer.state.statistics)
        self._batch, self._chunk = jax.device_put(batch), chunk
        start = time.perf_counter()
        self.trainer.step = self.trainer.step.lower(self.trainer.state, self._batch, *chunk).compile()
        self.compile_seconds = time.perf_counter() - start

    def train(self, steps: int) -> dict[str, Any]:
        """Updates the model `steps` times; seconds and loss of each step."""
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            metrics = jax.block_until_ready(self.trainer.update(self._batch, self._chunk))
            jax.block_until_ready(self.trainer.state)
            seconds.append(time.perf_counter() - start)
            losses.append(float(metrics["loss"]))
        return {"seconds": seconds, "losses": losses, "peak_memory_mib": system.peak_memory_mib()}


def measure(config: Config, batch: Batch, steps: int) -> dict:
    """Times JAX and both rows of PyTorch in alternating blocks of `steps` steps.

    Returns:
        the record: "rows", each with its median and all its times in seconds, and "ratio", the median of the faster
        PyTorch row over JAX's (above 1: JAX is faster). Raises PeerError without the peers' environment.
    """
    peers_python()  # fails here rather than after the compilation
    own, threads = Steps(config, batch), len(system.cores())
    rows: dict[str, dict[str, Any]] = {"JAX": {"versions": record.versions("jax", "jaxlib", "flax", "optax", "numpy")}}
    trainers: dict[str, Callable[[int], dict]] = {"JAX": own.train}
    with Peer(TWIN) as plain, Peer(TWIN, HEAP_KEPT) as kept, tempfile.TemporaryDirectory() as folder:
        arrays = pathlib.Path(folder) / "arrays.npz"
        batch_arrays = features_of(config, batch)
        save_arrays(arrays, own.weights, batch_arrays)
        for name, peer in {"PyTorch eager": plain, "PyTorch eager, heap kept": kept}.items():
            reply = peer.ask("load", config=dataclasses.asdict(config), arrays=str(arrays), num_threads=threads)
            rows[name] = {"versions": reply}
            trainers[name] = lambda n, peer=peer: peer.ask("train", steps=n)
        warm = {name: train(WARM_UP)["losses"] for name, train in trainers.items()}
        turns = {name: functools.partial(train, steps) for name, train in trainers.items()}
        blocks = harness.in_turn(turns, ROUNDS)
    for name, replies in blocks.items():
        seconds = [second for reply in replies for second in reply["seconds"]]
        rows[name] |= {
            "seconds": seconds,
            "losses": warm[name] + [loss for reply in replies for loss in reply["losses"]],
            "peak_memory_mib": replies[-1]["peak_memory_mib"],
            "median_seconds": statistics.median(seconds),
        }
    rows["JAX"]["compile_seconds"] = own.compile_seconds
    median, *others = (row["median_seconds"] for row in rows.values())
    return {
        "config": dataclasses.asdict(config),
        "num_parameters": count_parameters(own.trainer.state.params),
        "batch": {name: list(array.shape) for name, array in batch_arrays.items()},
        "threads": threads,
        "rounds": ROUNDS,
        "steps": steps,
        "rows": rows,
        "ratio": min(others) / median,
    }


def features_of(config: Config, batch: Batch) -> dict[str, np.ndarray]:
    """Returns the inputs of the twin: log-mel features, their lengths in frames, and the labels."""
    features, lengths = jax.device_get(jax.jit(lambda *audio: log_mel(config.features, *audio))(*batch[:2]))
    return {"features": features, "lengths": lengths, "labels": batch.labels, "label_lengths": batch.label_lengths}


def save_arrays(path: pathlib.Path, weights: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> None:
    """Writes what the twin's "load" reads."""
    arrays: dict[str, Any] = {f"weights/{name}": array for name, array in weights.items()} | batch
    np.savez(path, **arrays)


def table(result: dict) -> str:
    """The record for a reader."""
    utterances, frames, bins = result["batch"]["features"]
    headings = ("training step", "median", "fastest", "slowest", "peak memory")
    rows = [
        (
            name,
            *(f"{seconds:.3f} s" for seconds in (row["median_seconds"], min(row["seconds"]), max(row["seconds"]))),
            harness.mebibytes(row["peak_memory_mib"]),
        )
        for name, row in result["rows"].items()
    ]
    return (
        f"{harness.table(headings, rows)}\n"
        f"{result['num_parameters'] / 1e6:.2f} M parameters, {result['config']['train']['compute']}, {utterances} "
        f"utterances of {frames} x {bins} features, {result['threads']} threads.\n"
        f"JAX compiles in {result['rows']['JAX']['compile_seconds']:.1f} s (not counted above).\n"
        f"Faster PyTorch row / JAX: {result['ratio']:.2f}"
    )


def run(steps: int, compute: str) -> dict:
    """`bench.py training`."""
    jax.config.update("jax_enable_compilation_cache", False)  # a compile time from the cache would be none
    config = benchmark_config(compute)
    return measure(config, random_batch(config), steps)
