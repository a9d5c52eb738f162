"""A trained encoder over long recordings in one piece, with dense attention and without: time and memory.

With a stream's context (chunks of 16 frames, 4 to their left) and with full context, the two in turn.
"""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import harness
from conformer.model import ConformerCTC
from conformer.training.checkpoint import load_model

FRAMES = (1024, 4096)  # encoder frames: 41 and 164 seconds at 40 ms
CONTEXTS = {"chunks of 16, 4 left": (16, 4), "full": (0, -1)}
ROUNDS = 5


def run(workdir: str) -> dict:
    """Seconds, temporary memory and the largest difference of logits, for each length and context."""
    config, model, _, step = load_model(workdir)
    rows = []
    for frames in FRAMES:
        shape = (1, model.encoder.subsampling.window(frames), config.features.num_mel_bins)
        features = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
        for context, chunking in CONTEXTS.items():
            passes: dict[str, Any] = {
                name: _compiled(model, name, features, *chunking) for name in ("reference", "xla")
            }
            dense, own = (np.asarray(forward(features)) for forward in passes.values())
            runs = {
                name: lambda f=forward, x=features: harness.seconds(lambda: f(x)) for name, forward in passes.items()
            }
            times = harness.in_turn(runs, ROUNDS)
            rows.append({"frames": frames, "context": context, "largest_logit": float(np.abs(dense).max())})
            rows[-1]["largest_difference"] = float(np.abs(own - dense).max())
            for name, forward in passes.items():
                mebibytes = round(forward.memory_analysis().temp_size_in_bytes / 2**20, 1)
                rows[-1][name] = {"seconds": statistics.median(times[name]), "temporary_mib": mebibytes}
    return {"step": step, "rows": rows}


def _compiled(
    model: ConformerCTC, implementation: str, features: jax.Array, chunk_size: int, num_left_chunks: int
) -> Any:
    model = nnx.clone(model)
    for block in model.encoder.blocks:
        block.attention.implementation = implementation
    length = jnp.array([features.shape[1]])

    def forward(features: jax.Array) -> jax.Array:
        return model(features, length, chunk_size=chunk_size, num_left_chunks=num_left_chunks)[0]

    return jax.jit(forward).lower(features).compile()


def table(result: dict) -> str:
    """A line a length and context."""
    return harness.table(
        ("frames, context", "dense", "memory", "ours", "memory"),
        [
            (
                f"{row['frames']}, {row['context']}",
                *(
                    text
                    for name in ("reference", "xla")
                    for text in (f"{row[name]['seconds']:.2f} s", f"{row[name]['temporary_mib']:.1f} MiB")
                ),
            )
            for row in result["rows"]
        ],
    )
