"""Measures the time saved by reading weights less often or in fewer bytes: a stream reads all of them for every chunk.

Each row changes one thing about one float32 stream of chunks of 16 frames, the last one several.
"""

from typing import NamedTuple

from benchmarks import harness
from benchmarks.chunk import CHUNK_SIZE, NUM_LEFT_CHUNKS, benchmark_config, chunk_seconds
from conformer import system
from conformer.config import Config
from conformer.cost import PRECISIONS, Workload, operations


class Variant(NamedTuple):
    """One way to serve streams."""

    name: str
    numerics: str = "float32"
    batch_size: int = 1
    chunk_size: int = CHUNK_SIZE


VARIANTS = (
    Variant("float32"),
    Variant("bfloat16 weights", numerics="bfloat16"),
    Variant("int8 weights", numerics="int8"),
    Variant("4 streams at once", batch_size=4),
    Variant("16 streams at once", batch_size=16),
    Variant("chunks of 32 frames", chunk_size=2 * CHUNK_SIZE),
    Variant("chunks of 64 frames", chunk_size=4 * CHUNK_SIZE),
    Variant("int8, 4 streams, 32 frames", numerics="int8", batch_size=4, chunk_size=2 * CHUNK_SIZE),
)


def run(chunks: int, config: Config | None = None) -> dict:
    """`bench.py bandwidth`, on one core; of the 20 M parameter model unless told."""
    system.use_one_core()
    config, rows = config or benchmark_config(), {}
    for variant in VARIANTS:
        # The left context keeps its length in frames.
        left = -(-NUM_LEFT_CHUNKS * CHUNK_SIZE // variant.chunk_size)
        workload = Workload.chunk(config, variant.chunk_size, left, variant.batch_size)
        seconds, _ = chunk_seconds(config, workload, chunks, variant.numerics)
        found = operations(config, workload)
        weights = sum(operation.parameters for operation in found) * PRECISIONS[variant.numerics].weights
        rows[variant.name] = {
            **variant._asdict(),
            "ms_per_second_of_audio": 1e3 * seconds / workload.seconds,
            "weight_bytes_per_second_of_audio": weights / workload.seconds,
            "operations_per_second_of_audio": sum(operation.flops for operation in found) / workload.seconds,
        }
    return {"num_left_chunks": NUM_LEFT_CHUNKS, "rows": rows}


def table(result: dict) -> str:
    """The record for a reader."""
    first = result["rows"][VARIANTS[0].name]["ms_per_second_of_audio"]
    rows = [
        (
            name,
            f"{row['ms_per_second_of_audio']:.2f}",
            f"{first / row['ms_per_second_of_audio']:.2f}",
            f"{row['weight_bytes_per_second_of_audio'] / 1e6:.1f} MB",
            f"{row['operations_per_second_of_audio'] / 1e9:.2f} G",
        )
        for name, row in result["rows"].items()
    ]
    return harness.table(("a second of audio on one core", "ms", "speed", "weights read", "operations"), rows)
