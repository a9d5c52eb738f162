"""A trained encoder over long recordings in one piece, with dense attention and without: time and memory.

    python -m benchmarks.long_audio WORKDIR [FILE.json]

With a stream's context (chunks of 16 frames, 4 to their left) and with full context, the two in alternation.
"""

import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer import record, runtime
from conformer.model import ConformerCTC
from conformer.training.checkpoint import load_model

FRAMES = (1024, 4096)  # encoder frames: 41 and 164 seconds at 40 ms
CONTEXTS = {"chunks of 16, 4 left": (16, 4), "full": (0, -1)}
RUNS = 5


def run(workdir: str) -> dict:
    """Seconds, temporary memory and the largest difference of logits, for each length and context."""
    circumstances = record.describe_run() | {"versions": record.versions("jax", "jaxlib", "flax")}
    runtime.set_up()
    config, model, _, step = load_model(workdir)
    rows = []
    for frames in FRAMES:
        time_frames = model.encoder.subsampling.window(frames)
        shape = (1, time_frames, config.features.num_mel_bins)
        features = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
        for context, chunks in CONTEXTS.items():
            passes = {name: _compiled(model, name, features, *chunks) for name in ("reference", "xla")}
            logits = {name: np.asarray(forward(features)) for name, forward in passes.items()}
            seconds: dict[str, list[float]] = {name: [] for name in passes}
            for _ in range(RUNS):
                for name, forward in passes.items():
                    start = time.perf_counter()
                    jax.block_until_ready(forward(features))
                    seconds[name].append(time.perf_counter() - start)
            rows.append({"frames": frames, "context": context})
            rows[-1]["largest_difference"] = float(np.abs(logits["xla"] - logits["reference"]).max())
            rows[-1]["largest_logit"] = float(np.abs(logits["reference"]).max())
            for name, forward in passes.items():
                memory: Any = forward.memory_analysis()
                mebibytes = round(memory.temp_size_in_bytes / 2**20, 1)
                rows[-1][name] = {"seconds": statistics.median(seconds[name]), "temporary_mib": mebibytes}
            print(line(rows[-1]), flush=True)
    return circumstances | {"step": step, "rows": rows}


def _compiled(model: ConformerCTC, implementation: str, features: jax.Array, chunk_size: int, num_left_chunks: int):
    model = nnx.clone(model)
    for block in model.encoder.blocks:
        block.attention.implementation = implementation
    length = jnp.array([features.shape[1]])

    def forward(features: jax.Array) -> jax.Array:
        return model(features, length, chunk_size=chunk_size, num_left_chunks=num_left_chunks)[0]

    return jax.jit(forward).lower(features).compile()


def line(row: dict) -> str:
    """One length and context."""
    dense, ours = row["reference"], row["xla"]
    return (
        f"{row['frames']:>5} frames, {row['context']:<20} dense {dense['seconds']:6.2f} s "
        f"{dense['temporary_mib']:7.1f} MiB"
        f"   ours {ours['seconds']:6.2f} s {ours['temporary_mib']:7.1f} MiB"
    )


if __name__ == "__main__":
    result = run(sys.argv[1])
    if len(sys.argv) > 2:
        record.write(sys.argv[2], result)
