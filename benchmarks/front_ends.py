"""Measures what a front end costs a processor: a training step, and a second of a stream, before the same encoder.

Counts of multiply-accumulates do not tell: depthwise convolutions have few, but move as many bytes as others.
"""

import statistics

from benchmarks import harness
from benchmarks.chunk import CHUNK_SIZE, NUM_LEFT_CHUNKS, chunk_seconds
from benchmarks.training import Steps, random_batch
from configs.front_ends import FRONT_ENDS, get_config
from conformer import system
from conformer.cost import Workload
from conformer.data import make_buckets

ROUNDS = 15  # steps of each, in turn
VOCAB_SIZE = {"words": 30, "libri_mini": 129}


def run(chunks: int) -> dict:
    """`bench.py front_ends`, on one core; steps on noise, in the bucket in the middle."""
    system.use_one_core()
    rows = []
    for base in VOCAB_SIZE:
        configs = {
            name: get_config(f"{base},{name}").replace({"model.vocab_size": VOCAB_SIZE[base]}) for name in FRONT_ENDS
        }
        steps = {}
        for name, config in configs.items():
            buckets = make_buckets(config.data, config.features.sample_rate)
            bucket = buckets[len(buckets) // 2]
            batch = random_batch(config, bucket.batch_size, bucket.seconds, config.data.max_label_rate / 4)
            steps[name] = Steps(config, batch)
            steps[name].train(1)
        turns = {name: lambda own=own: own.train(1)["seconds"][0] for name, own in steps.items()}
        times = harness.in_turn(turns, ROUNDS)
        for name, config in configs.items():
            workload = Workload.chunk(config, CHUNK_SIZE, NUM_LEFT_CHUNKS)
            stream = chunk_seconds(config, workload, chunks)[0] / workload.seconds
            median = statistics.median(times[name])
            rows.append({"base": base, "front_end": name, "step_seconds": median, "real_time_factor": stream})
    return {"rows": rows}


def table(result: dict) -> str:
    """A line a front end."""
    return harness.table(
        ("", "training step", "real-time factor"),
        [
            (
                f"{row['base']}, {row['front_end']}",
                f"{1e3 * row['step_seconds']:.0f} ms",
                f"{row['real_time_factor']:.4f}",
            )
            for row in result["rows"]
        ],
    )
