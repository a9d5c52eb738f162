"""One chunk of one stream on one core: features in, log-probabilities and the next cache out.

JAX in each format of weights beside the PyTorch twin, ONNX Runtime and LiteRT, all with the same weights, and beside
what the core's own rates allow. Each contestant is a process of its own on the same core, and only one works at a time.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from benchmarks.peers import ROOT, Peer, PeerError, flat_weights
from benchmarks.training import HEAP_KEPT
from conformer import record, runtime
from conformer.config import Config, ModelConfig, TrainConfig
from conformer.cost import Operation, Workload, operations
from conformer.export.formats import FORMATS
from conformer.model import ConformerCTC

CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4
ROUNDS = 5  # blocks of chunks of each contestant, in turn
FOLLOWED = 5  # chunks in a row whose results are compared
TOLERANCE = 1e-3  # largest difference of a float32 contestant's log-probabilities
REFERENCE = "JAX float32"


class Contestant(NamedTuple):
    """A module that serves a `benchmarks.contestant.Streamer`, and what it is loaded with."""

    module: str
    arguments: dict[str, Any]
    exact: bool  # computes in float32

    @property
    def is_peer(self) -> bool:
        """It runs in the peers' environment rather than in this one."""
        return self.module.startswith("benchmarks.torch_peer.")


JAX, TWIN, EXPORT = "benchmarks.jax_peer", "benchmarks.torch_peer.streaming", "benchmarks.export_peer"
CONTESTANTS = {
    REFERENCE: Contestant(JAX, {"numerics": "float32"}, exact=True),
    "JAX bfloat16 weights": Contestant(JAX, {"numerics": "bfloat16"}, exact=False),
    "JAX int8 weights": Contestant(JAX, {"numerics": "int8"}, exact=False),
    "PyTorch eager": Contestant(TWIN, {"compiled": False}, exact=True),
    "PyTorch compiled": Contestant(TWIN, {"compiled": True}, exact=True),
    "ONNX Runtime float32": Contestant(EXPORT, {"format": "onnx", "numerics": "float32"}, exact=True),
    "ONNX Runtime int8": Contestant(EXPORT, {"format": "onnx", "numerics": "int8"}, exact=False),
    "LiteRT float32": Contestant(EXPORT, {"format": "litert", "numerics": "float32"}, exact=True),
    "LiteRT int8": Contestant(EXPORT, {"format": "litert", "numerics": "int8"}, exact=False),
}


class DisagreementError(ValueError):
    """A float32 contestant computes something else than JAX: its time would mean nothing."""


def benchmark_config() -> Config:
    """About 20 M parameters."""
    return Config(
        model=ModelConfig(
            subsampling="depthwise_separable",
            subsampling_factor=4,
            subsampling_channels=256,
            encoder_dim=256,
            num_layers=12,
            num_heads=4,
            feed_forward_dim=1024,
            kernel_size=15,
            vocab_size=500,
        ),
        train=TrainConfig(chunk_sizes=(CHUNK_SIZE,), num_left_chunks=(NUM_LEFT_CHUNKS,)),
    )


def save_inputs(
    folder: str | pathlib.Path, config: Config, weights: dict[str, np.ndarray], windows: np.ndarray
) -> None:
    """Writes what contestants load: config.json, weights.npz, windows.npy.

    Args:
        weights: the model's arrays (`benchmarks.peers.flat_weights`).
        windows: features of successive chunks, (chunks, 1, window, mel).
    """
    folder = pathlib.Path(folder)
    (folder / "config.json").write_text(config.to_json())
    arrays: dict[str, Any] = weights
    np.savez(folder / "weights.npz", **arrays)
    np.save(folder / "windows.npy", windows)


def measure(config: Config, chunk_size: int, num_left_chunks: int, chunks: int) -> dict:
    """Times every contestant in alternating blocks of `chunks` chunks.

    Returns:
        the record. "rows" holds, for each contestant, its times in seconds, their median, "speed" (the reference's
        median over its own), "difference" (largest of its log-probabilities from the reference's) and, for JAX,
        "bound"; or "skipped", the reason why it has none of them.

    Raises:
        DisagreementError: a float32 contestant differs by more than TOLERANCE.
        PeerError: a contestant's process failed.
    """
    circumstances = record.describe_run()
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    model = ConformerCTC(config, rngs=nnx.Rngs(config.seed))
    rng = np.random.default_rng(config.seed)
    # What training begins with at zero or one must count too.
    state = jax.tree.map(lambda a: a + 0.02 * rng.standard_normal(a.shape, np.float32), nnx.state(model))
    shape = (FOLLOWED, 1, model.encoder.subsampling.window(chunk_size), config.features.num_mel_bins)
    rows: dict[str, dict[str, Any]] = {}
    chunking = {"chunk_size": chunk_size, "num_left_chunks": num_left_chunks}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        save_inputs(folder, config, flat_weights(state), rng.standard_normal(shape, np.float32))
        with _pinned(core):  # what a process starts inherits its core
            rates = json.loads(_run_module("benchmarks.machine"))
            if any(contestant.module == EXPORT for contestant in CONTESTANTS.values()) and not missing_packages():
                _run_module("benchmarks.exports", folder, str(chunk_size), str(num_left_chunks))
            processes = {}
            for name, contestant in CONTESTANTS.items():
                rows[name], process = _load(contestant, folder, chunking, stack)
                if process is not None:
                    processes[name] = process
        _compare(rows, processes, pathlib.Path(folder))
        _run_rounds(rows, processes, chunks)
    counted = operations(config, Workload.chunk(config, chunk_size, num_left_chunks))
    for name, row in rows.items():
        if "skipped" not in row:
            row["median_seconds"] = statistics.median(row["seconds"])
            row["speed"] = rows[REFERENCE]["median_seconds"] / row["median_seconds"]
            if CONTESTANTS[name].module == JAX:
                row["bound"] = bound(counted, row["weight_bytes"], rates, CONTESTANTS[name].arguments["numerics"])
    cache = jax.eval_shape(lambda: model.encoder.initial_cache(1, chunk_size, num_left_chunks))
    frame_seconds = config.features.frame_shift_ms / 1000 * config.model.subsampling_factor
    return {
        "benchmark": "streaming",
        **circumstances,
        "config": dataclasses.asdict(config),
        "num_parameters": sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param))),
        **chunking,
        "chunk_seconds": chunk_size * frame_seconds,
        "core": core,
        "rounds": ROUNDS,
        "chunks": chunks,
        "operations": 2 * sum(operation.macs for operation in counted),
        "state_bytes": sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(cache)),
        "rates": rates,
        "rows": rows,
    }


def bound(counted: list[Operation], weight_bytes: int, rates: dict[str, float], weights: str) -> dict[str, float]:
    """The least seconds a chunk can take: all its products at the core's rate, or all weights read once.

    Linear maps but the head multiply in the format of the weights, everything else in float32.
    """
    maps = [o for o in counted if o.matrix and o.parameters and o.module != "head" and o.name != "dense"]
    linear, products = (2 * sum(operation.macs for operation in part) for part in (maps, counted))
    return {
        "compute_seconds": linear / rates[weights] + (products - linear) / rates["float32"],
        "memory_seconds": weight_bytes / rates["copy"],
    }


def missing_packages() -> list[str]:
    """What exports need and is not installed here."""
    needed = [name for format in ("onnx", "litert") for name in FORMATS[format].packages]
    return [name for name in needed if importlib.util.find_spec(name) is None]


def _load(
    contestant: Contestant, folder: str, chunking: dict[str, int], stack: contextlib.ExitStack
) -> tuple[dict[str, Any], Peer | None]:
    """The beginning of a row, and the process, or None where the row says why there is none."""
    if contestant.module == EXPORT and (missing := missing_packages()):
        return {
            "skipped": f"no {', '.join(missing)}: install the extra, pip install -c requirements.lock -e '.[export]'"
        }, None
    try:
        process = Peer(contestant.module, HEAP_KEPT, python=None if contestant.is_peer else sys.executable)
    except PeerError as error:
        return {"skipped": str(error)}, None
    stack.enter_context(process)
    row = process.ask("load", folder=folder, **chunking, **contestant.arguments)
    return row, None if "skipped" in row else process


def _compare(rows: dict[str, dict[str, Any]], processes: dict[str, Peer], folder: pathlib.Path) -> None:
    """Fills in "difference"."""
    outputs = {}
    for name, process in processes.items():
        output = folder / "output.npy"
        process.ask("follow", output=str(output))
        outputs[name] = np.load(output)
        rows[name]["difference"] = float(np.abs(outputs[name] - outputs[REFERENCE]).max())
        if CONTESTANTS[name].exact and not rows[name]["difference"] <= TOLERANCE:
            raise DisagreementError(
                f"{name}: log-probabilities differ from those of {REFERENCE} by {rows[name]['difference']:.2g}, more "
                f"than {TOLERANCE:g}: correct {CONTESTANTS[name].module} before timing it"
            )


def _run_rounds(rows: dict[str, dict[str, Any]], processes: dict[str, Peer], chunks: int) -> None:
    """Fills in "seconds" and "peak_memory_mib"."""
    for name in processes:
        rows[name]["seconds"] = []
    for turn in range(ROUNDS):
        # Back and forth, so that a machine that slows down or speeds up favours nobody.
        for name in list(processes)[:: 1 if turn % 2 == 0 else -1]:
            result = processes[name].ask("time", chunks=chunks)
            rows[name]["seconds"] += result["seconds"]
            rows[name]["peak_memory_mib"] = result["peak_memory_mib"]


@contextlib.contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Restricts this thread, and the processes it starts, to one core; None = a system that cannot."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _run_module(module: str, *arguments: str) -> str:
    """What the module prints. Raises PeerError when it fails."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    except subprocess.CalledProcessError as error:
        raise PeerError(f"{module} ended with status {error.returncode}: its own message is above") from None


def table(result: dict) -> str:
    """The record for a reader."""
    products, rates = result["operations"], result["rates"]
    state, core = result["state_bytes"], result["core"]
    lines = [
        f"Chunk of a stream: {result['num_parameters'] / 1e6:.2f} M parameters, {result['chunk_size']} encoder frames "
        f"({1000 * result['chunk_seconds']:.0f} ms), {result['num_left_chunks']} chunks of left context; "
        f"{result['device']['cpu']}, {'not pinned to a core' if core is None else f'core {core} alone'}",
        f"{'':22}{'median':>10}{'fastest':>10}{'real time':>11}{'speed':>7}{'difference':>12}{'weights':>10}"
        f"{'memory':>10}",
    ]
    timed = {name: row for name, row in result["rows"].items() if "skipped" not in row}
    for name, row in timed.items():
        memory = row["peak_memory_mib"]
        lines.append(
            f"{name:22}{1000 * row['median_seconds']:7.2f} ms{1000 * min(row['seconds']):7.2f} ms"
            f"{row['median_seconds'] / result['chunk_seconds']:11.4f}{row['speed']:7.2f}{row['difference']:12.1e}"
            f"{row['weight_bytes'] / 1e6:7.1f} MB" + ("   unknown" if memory is None else f"{memory:6.0f} MiB")
        )
    lines += [f"{name}: skipped, {row['skipped']}" for name, row in result["rows"].items() if "skipped" in row]
    lines += [
        f"real time: median / length of the chunk; speed: times that of {REFERENCE}; difference: largest from its",
        f"log-probabilities in {FOLLOWED} chunks in a row; memory: the most that the process has held.",
        f"A chunk has {products / 1e9:.3f} G operations in products and convolutions. The core multiplies at",
        f"{rates['float32'] / 1e9:.0f} G operations/s in float32, {rates['bfloat16'] / 1e9:.0f} in bfloat16, "
        f"{rates['int8'] / 1e9:.0f} in int8, and copies {rates['copy'] / 1e9:.1f} GB/s (read and written). Hence:",
    ]
    for name, row in timed.items():
        if "bound" in row:
            compute, memory = row["bound"]["compute_seconds"], row["bound"]["memory_seconds"]
            limit, kind = max((compute, "compute"), (memory, "memory"))
            lines.append(
                f"{name:22} products {1000 * compute:6.2f} ms, weights {1000 * memory:6.2f} ms: bound by {kind}, "
                f"median {row['median_seconds'] / limit:.2f} and fastest {min(row['seconds']) / limit:.2f} times that"
            )
    lines.append(f"A stream has {state / 1e6:.2f} MB of state, a thousand streams {state / 1e6:.2f} GB.")
    if (load := result["load_average"]) > 0.5:
        lines.append(
            f"The load average was {load:.1f} at the start: other work slows the rows unequally. Measure again."
        )
    return "\n".join(lines)


def run(chunks: int) -> dict:
    """`bench.py streaming`."""
    runtime.set_up()
    return measure(benchmark_config(), CHUNK_SIZE, NUM_LEFT_CHUNKS, chunks)
