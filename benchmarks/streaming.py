"""One chunk of one stream on one core: features in, log-probabilities and the next cache out.

JAX in each format of weights beside the PyTorch twin, ONNX Runtime and LiteRT, all with the same weights, and beside
what the core's own rates allow. Each contestant is a process of its own on the same core, and only one works at a time.
"""

import contextlib
import dataclasses
import pathlib
import statistics
import sys
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from benchmarks import harness, machine
from benchmarks.chunk import CHUNK_SIZE, NUM_LEFT_CHUNKS, benchmark_config, random_model
from benchmarks.own_peer import artefact_path
from benchmarks.peers import Peer, PeerError, flat_weights
from benchmarks.training import HEAP_KEPT
from conformer import system
from conformer.artefacts.formats import ExportError
from conformer.artefacts.geometry import Geometry
from conformer.config import Config
from conformer.cost import Operation, Workload, operations
from conformer.export.formats import Task, backend

ROUNDS = 5  # blocks of chunks of each contestant, in turn
FOLLOWED = 5  # chunks in a row whose results are compared
TOLERANCE = 1e-3  # largest difference of a float32 contestant's log-probabilities
REFERENCE = "JAX float32"


class Contestant(NamedTuple):
    """A module that serves a `benchmarks.contestant.Streamer`, and what it is loaded with."""

    module: str
    arguments: dict[str, Any]
    exact: bool = False  # computes in float32


OWN, TWIN = "benchmarks.own_peer", "benchmarks.torch_peer.streaming"
CONTESTANTS = {
    REFERENCE: Contestant(OWN, {"format": None, "numerics": "float32"}, exact=True),
    "JAX bfloat16 weights": Contestant(OWN, {"format": None, "numerics": "bfloat16"}),
    "JAX int8 weights": Contestant(OWN, {"format": None, "numerics": "int8"}),
    "PyTorch eager": Contestant(TWIN, {"compiled": False}, exact=True),
    "PyTorch compiled": Contestant(TWIN, {"compiled": True}, exact=True),
    "ONNX Runtime float32": Contestant(OWN, {"format": "onnx", "numerics": "float32"}, exact=True),
    "ONNX Runtime int8": Contestant(OWN, {"format": "onnx", "numerics": "int8"}),
    "LiteRT float32": Contestant(OWN, {"format": "litert", "numerics": "float32"}, exact=True),
    "LiteRT int8": Contestant(OWN, {"format": "litert", "numerics": "int8"}),
}


class DisagreementError(ValueError):
    """A float32 contestant computes something else than JAX: its time would mean nothing."""


def run(chunks: int) -> dict:
    """`bench.py streaming`, on one core: what a process starts inherits it."""
    system.use_one_core()
    return measure(benchmark_config(), CHUNK_SIZE, NUM_LEFT_CHUNKS, chunks)


def save_inputs(
    folder: str | pathlib.Path, config: Config, weights: dict[str, np.ndarray], windows: np.ndarray
) -> None:
    """Writes what contestants load: config.json, weights.npz, windows.npy.

    Args:
        weights: the model's arrays (`benchmarks.peers.flat_weights`), for those that cannot draw them themselves.
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
    model, rates = random_model(config), machine.rates()
    shape = (FOLLOWED, 1, model.encoder.subsampling.window(chunk_size), config.features.num_mel_bins)
    windows = np.random.default_rng(config.seed).standard_normal(shape, np.float32)
    rows: dict[str, dict[str, Any]] = {}
    processes: dict[str, Peer] = {}
    chunking = {"chunk_size": chunk_size, "num_left_chunks": num_left_chunks}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, geometry = pathlib.Path(name), Geometry.of(config, model, chunk_size, num_left_chunks)
        save_inputs(folder, config, flat_weights(nnx.state(model)), windows)
        for contestant, (module, arguments, _) in CONTESTANTS.items():
            if format := arguments.get("format"):
                path = artefact_path(folder, format, arguments["numerics"])
                with contextlib.suppress(ExportError):  # the contestant says which package is missing
                    backend(format).export(Task(config, model, geometry, arguments["numerics"], path, []))
            try:
                process = stack.enter_context(Peer(module, HEAP_KEPT, python=sys.executable if module == OWN else None))
            except PeerError as error:
                rows[contestant] = {"skipped": str(error)}
                continue
            rows[contestant] = process.ask("load", folder=name, **chunking, **arguments)
            if "skipped" not in rows[contestant]:
                processes[contestant] = process
        _compare(rows, processes, folder)
        asked = {
            name: lambda process=process: process.ask("time", chunks=chunks) for name, process in processes.items()
        }
        blocks = harness.in_turn(asked, ROUNDS)
    counted = operations(config, Workload.chunk(config, chunk_size, num_left_chunks))
    for contestant, replies in blocks.items():
        row, (module, arguments, _) = rows[contestant], CONTESTANTS[contestant]
        row["seconds"] = [seconds for reply in replies for seconds in reply["seconds"]]
        row["peak_memory_mib"] = replies[-1]["peak_memory_mib"]
        row["median_seconds"] = statistics.median(row["seconds"])
        row["speed"] = rows[REFERENCE]["median_seconds"] / row["median_seconds"]
        if module == OWN and arguments["format"] is None:
            row["bound"] = bound(counted, row["weight_bytes"], rates, arguments["numerics"])
    cache = jax.eval_shape(lambda: model.encoder.initial_cache(1, chunk_size, num_left_chunks))
    frame_seconds = config.features.frame_shift_ms / 1000 * config.model.subsampling_factor
    return {
        "config": dataclasses.asdict(config),
        "num_parameters": sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param))),
        **chunking,
        "chunk_seconds": chunk_size * frame_seconds,
        "cores": system.cores(),
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


def table(result: dict) -> str:
    """The record for a reader."""
    rates, state = result["rates"], result["state_bytes"]
    timed = {name: row for name, row in result["rows"].items() if "skipped" not in row}
    headings = ("a chunk", "median", "fastest", "real time", "speed", "difference", "weights", "memory")
    lines = [
        harness.table(
            headings,
            [
                (
                    name,
                    f"{1000 * row['median_seconds']:.2f} ms",
                    f"{1000 * min(row['seconds']):.2f} ms",
                    f"{row['median_seconds'] / result['chunk_seconds']:.4f}",
                    f"{row['speed']:.2f}",
                    f"{row['difference']:.1e}",
                    f"{row['weight_bytes'] / 1e6:.1f} MB",
                    harness.mebibytes(row["peak_memory_mib"]),
                )
                for name, row in timed.items()
            ],
        )
    ]
    lines += [f"{name}: skipped, {row['skipped']}" for name, row in result["rows"].items() if "skipped" in row]
    lines.append(
        f"{result['num_parameters'] / 1e6:.2f} M parameters, {result['chunk_size']} encoder frames "
        f"({1000 * result['chunk_seconds']:.0f} ms), {result['num_left_chunks']} chunks of left context. Real time: "
        f"median / length of the chunk; speed: times that of {REFERENCE}; difference: largest from its "
        f"log-probabilities in {FOLLOWED} chunks in a row; memory: the most that the process has held.\n"
        f"A chunk has {result['operations'] / 1e9:.3f} G operations in products and convolutions. The core multiplies "
        f"at {rates['float32'] / 1e9:.0f} G operations/s in float32, {rates['bfloat16'] / 1e9:.0f} in bfloat16, "
        f"{rates['int8'] / 1e9:.0f} in int8, and copies {rates['copy'] / 1e9:.1f} GB/s (read and written). Hence:"
    )
    for name, row in timed.items():
        if "bound" in row:
            compute, memory = row["bound"]["compute_seconds"], row["bound"]["memory_seconds"]
            limit, kind = max((compute, "compute"), (memory, "memory"))
            lines.append(
                f"{name:22} products {1000 * compute:6.2f} ms, weights {1000 * memory:6.2f} ms: bound by {kind}, "
                f"median {row['median_seconds'] / limit:.2f} and fastest {min(row['seconds']) / limit:.2f} times that"
            )
    lines.append(f"A stream has {state / 1e6:.2f} MB of state, a thousand streams {state / 1e6:.2f} GB.")
    return "\n".join(lines)
