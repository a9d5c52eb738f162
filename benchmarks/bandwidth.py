"""What it saves to read weights less often or in fewer bytes: a stream reads all of them for every chunk.

Each row changes one thing about one float32 stream of chunks of 16 frames, the last one several.
"""

from typing import NamedTuple

from benchmarks.cost import measure_chunk, pin
from benchmarks.streaming import CHUNK_SIZE, NUM_LEFT_CHUNKS, benchmark_config
from conformer import record, runtime
from conformer.config import Config
from conformer.cost import FORMATS, Workload, operations


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
    """`bench.py bandwidth`, on the last of this process's cores alone; of the 20 M parameter model unless told."""
    result = record.describe_run() | {"benchmark": "bandwidth", "num_left_chunks": NUM_LEFT_CHUNKS, "rows": {}}
    pin()
    runtime.set_up()
    config = config or benchmark_config()
    config.train.chunk_sizes = tuple({variant.chunk_size for variant in VARIANTS})
    for variant in VARIANTS:
        # The left context keeps its length in frames.
        left = -(-NUM_LEFT_CHUNKS * CHUNK_SIZE // variant.chunk_size)
        workload = Workload.chunk(config, variant.chunk_size, left, variant.batch_size)
        seconds, _ = measure_chunk(config, workload, chunks, variant.numerics)
        found = operations(config, workload)
        weights = sum(operation.parameters for operation in found) * FORMATS[variant.numerics].weights
        result["rows"][variant.name] = {
            **variant._asdict(),
            "ms_per_second_of_audio": 1e3 * seconds / workload.seconds,
            "weight_bytes_per_second_of_audio": weights / workload.seconds,
            "operations_per_second_of_audio": sum(operation.flops for operation in found) / workload.seconds,
        }
    return result


def table(result: dict) -> str:
    """The record for a reader."""
    rows = result["rows"]
    first = rows[VARIANTS[0].name]
    lines = [f"{'a second of audio on one core':30}{'ms':>8}{'speed':>8}{'weights read':>15}{'operations':>13}"]
    for name, row in rows.items():
        milliseconds, products = row["ms_per_second_of_audio"], row["operations_per_second_of_audio"]
        lines.append(
            f"{name:30}{milliseconds:8.2f}{first['ms_per_second_of_audio'] / milliseconds:8.2f}"
            f"{row['weight_bytes_per_second_of_audio'] / 1e6:12.1f} MB{products / 1e9:11.2f} G"
        )
    return "\n".join(lines)
