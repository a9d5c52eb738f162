"""What a front end costs a processor: a training step, and a second of a stream, before the same encoder.

Multiply-accumulates do not say: depthwise convolutions have few of them, and move as many bytes as others.
"""

import statistics
import time

import jax
import numpy as np

from benchmarks.cost import measure_chunk, pin
from configs.front_ends import BASES, FRONT_ENDS, get_config
from conformer import record, runtime
from conformer.config import Config
from conformer.cost import Workload
from conformer.data import Batch, Bucket, make_buckets
from conformer.training.state import initial_state
from conformer.training.step import make_train_step

STEPS = 15  # of each, in turn
LEFT_CHUNKS = 4
VOCAB_SIZE = {"words": 30, "libri_mini": 129}
WHOLE = np.int32(0), np.int32(-1)  # chunk size, left context


def run(chunks: int) -> dict:
    """`bench.py front_ends`, on the last of this process's cores alone."""
    result = record.describe_run() | {"versions": record.versions("jax", "flax"), "benchmark": "front_ends", "rows": []}
    pin()
    runtime.set_up()
    for base in BASES:
        configs = {name: get_config(f"{base},{name}") for name in FRONT_ENDS}
        for config in configs.values():
            config.model.vocab_size = VOCAB_SIZE[base]
        seconds = training_seconds(configs)
        for name, config in configs.items():
            workload = Workload.chunk(config, 16, LEFT_CHUNKS)
            stream = measure_chunk(config, workload, chunks, "float32")[0] / workload.seconds
            result["rows"].append(
                {"base": base, "front_end": name, "step_seconds": seconds[name], "real_time_factor": stream}
            )
    return result


def training_seconds(configs: dict[str, Config]) -> dict[str, float]:
    """The median of steps that are made in turn, on noise, in the bucket in the middle."""
    runs = {}
    for name, config in configs.items():
        buckets = make_buckets(config.data, config.features.sample_rate)
        batch = _noise(buckets[len(buckets) // 2])
        graphdef, state = initial_state(config, *np.ones((2, config.features.num_mel_bins), np.float32))
        step = make_train_step(config, graphdef)
        runs[name] = [step, step(state, batch, *WHOLE)[0], batch, []]
    for _ in range(STEPS):
        for one in runs.values():
            step, state, batch, seconds = one
            start = time.perf_counter()
            one[1] = jax.block_until_ready(step(state, batch, *WHOLE)[0])
            seconds.append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, (*_, seconds) in runs.items()}


def _noise(bucket: Bucket) -> Batch:
    rows, labels = bucket.batch_size, max(1, bucket.max_labels // 4)
    rng = np.random.default_rng(0)
    return Batch(
        audio=(0.1 * rng.standard_normal((rows, bucket.num_samples))).astype(np.float32),
        audio_lengths=np.full(rows, bucket.num_samples, np.int32),
        labels=rng.integers(1, 20, (rows, labels)).astype(np.int32),
        label_lengths=np.full(rows, labels, np.int32),
        weights=np.ones(rows, np.float32),
    )


def table(result: dict) -> str:
    """A line a front end."""
    lines = [f"{'':36}{'training step':>16}{'real-time factor':>18}"]
    for row in result["rows"]:
        name = f"{row['base']}, {row['front_end']}"
        lines.append(f"{name:36}{1e3 * row['step_seconds']:13.0f} ms{row['real_time_factor']:18.4f}")
    return "\n".join(lines)
