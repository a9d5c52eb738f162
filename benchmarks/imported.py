"""A public checkpoint's way to a device: import, exports, and a chunk of a stream on one core.

The checkpoint has random weights and a published shape (`benchmarks.nemo_file.Sizes`), so that nothing is downloaded.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.nemo_file import Sizes, write_nemo
from benchmarks.peers import ROOT
from conformer import record, system
from conformer.artefacts.card import Card, load_cards
from conformer.artefacts.loading import load_runtimes
from conformer.config import Config
from conformer.cost import num_parameters

EXPORTS = (("onnx", "float32"), ("onnx", "int8"), ("litert", "float32"), ("litert", "int8"))
REFERENCE = "onnx_float32"
ROUNDS = 5  # blocks of chunks of each artefact, in turn
POLL_SECONDS = 0.05  # between two looks at a process's memory


class CommandError(ValueError):
    """A command that was measured failed; its own message is above."""


def run(chunks: int, sizes: Sizes | None = None) -> dict:
    """`bench.py imported`: convert.py and export.py in processes of their own, then the artefacts' steps in turn."""
    sizes = sizes or Sizes()
    left, right = sizes.contexts[0]
    chunk_size, num_left_chunks = right + 1, left // (right + 1)
    with tempfile.TemporaryDirectory() as name:
        checkpoint, workdir, out = (pathlib.Path(name, part) for part in ("model.nemo", "imported", "exported"))
        write_nemo(checkpoint, sizes)
        result: dict[str, Any] = {
            "sizes": sizes._asdict(),
            "checkpoint_bytes": checkpoint.stat().st_size,
            "chunk_size": chunk_size,
            "num_left_chunks": num_left_chunks,
            "rounds": ROUNDS,
            "chunks": chunks,
            "import": measured("convert.py", str(checkpoint), f"--out={workdir}"),
        }
        config = Config.from_json(workdir / "config.json")
        result["num_parameters"] = num_parameters(config)
        flags = f"--chunk-size={chunk_size}", f"--num-left-chunks={num_left_chunks}", f"--out={out}"
        result["exports"] = {
            f"{format}_{numerics}": measured(
                "export.py", f"--workdir={workdir}", f"--format={format}", f"--numerics={numerics}", *flags
            )
            for format, numerics in EXPORTS
        }
        cards = load_cards(out)
        framing = cards[0].geometry.framing(config.features)
        result["chunk_seconds"] = framing.chunk_size * framing.frame_seconds
        with system.on_cores(system.cores()[:1]):
            steps = {card.name: _step(card, out) for card in cards}
            repeats = {name: lambda step=step: harness.core_seconds(step, chunks) for name, step in steps.items()}
            blocks = harness.in_turn(repeats, ROUNDS)
        result["rows"] = {}
        for card in cards:
            seconds = [value for block in blocks[card.name] for value in block]
            result["rows"][card.name] = {"file_bytes": card.file_bytes, "difference": card.check, "seconds": seconds}
    rows = result["rows"]
    for row in rows.values():
        row["median_seconds"] = statistics.median(row["seconds"])
        row["real_time_factor"] = row["median_seconds"] / result["chunk_seconds"]
    for row in rows.values():
        row["speed"] = rows[REFERENCE]["median_seconds"] / row["median_seconds"]
    return result | {"exporters": record.versions("jax2onnx", "onnxruntime", "litert-converter", "ai-edge-litert")}


def measured(script: str, *arguments: str) -> dict[str, Any]:
    """Seconds that a script of this project takes, start included, and the most memory that it held.

    Raises CommandError where it fails.
    """
    start = time.perf_counter()
    memory = None
    with subprocess.Popen([sys.executable, script, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            memory = system.peak_memory_mib(process.pid) or memory  # nothing is left of a process that has ended
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise CommandError(f"{script} ended with status {process.returncode}: its own message is above")
    return {"seconds": time.perf_counter() - start, "peak_memory_mib": memory}


def _step(card: Card, folder: pathlib.Path) -> Callable[[], Any]:
    """One chunk after another of a stream of noise through an artefact."""
    runtime = load_runtimes(card.format, folder / card.file, card.geometry, card.features)[""]
    shape = (1, runtime.framing.window, card.features.num_mel_bins)
    window = np.random.default_rng(0).standard_normal(shape, np.float32)
    num_frames = np.full(1, runtime.framing.chunk_size, np.int32)
    return lambda: runtime(window, num_frames)


def table(result: dict) -> str:
    """The record for a reader."""
    rows = []
    for name, row in result["rows"].items():
        export = result["exports"][name]
        rows.append(
            (
                name,
                f"{export['seconds']:.0f} s",
                harness.mebibytes(export["peak_memory_mib"]),
                f"{row['file_bytes'] / 1e6:.1f} MB",
                f"{row['difference']:.1e}",
                f"{1000 * row['median_seconds']:.1f} ms",
                f"{row['real_time_factor']:.4f}",
                f"{row['speed']:.2f}",
            )
        )
    headings = ("artefact", "export", "memory", "size", "difference", "a chunk", "real time", "speed")
    imported = result["import"]
    return (
        f"{result['num_parameters'] / 1e6:.1f} M parameters: imported in {imported['seconds']:.1f} s with at most "
        f"{harness.mebibytes(imported['peak_memory_mib'])} of memory.\n"
        + harness.table(headings, rows)
        + f"\nA chunk is {1000 * result['chunk_seconds']:.0f} ms; medians of {result['rounds']} blocks of "
        f"{result['chunks']} on one core, in processor time. Real time: median / length of the chunk; speed: times "
        f"that of {REFERENCE}; difference: largest of a log-probability from JAX float32."
    )
