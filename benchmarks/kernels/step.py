"""A training step of the medium LibriSpeech model, with our kernels and with XLA alone.

Its positions are a learned bias, which the kernel of attention takes, and each utterance has one view.
"""

import statistics
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.kernels.contestants import kernel_here
from benchmarks.training import Steps, random_batch
from configs.librispeech import get_config

UTTERANCES, SECONDS = 58, 16.5
CHUNK = np.int32(16), np.int32(4)  # and chunks of left context
STEPS, ROUNDS = 10, 5


def compare() -> dict[str, Any]:
    """Times of both in alternation, and their ratio; where there is no kernel, that the figure is left open."""
    name = kernel_here()
    if name is None:
        return {"text": "The training step with kernels: left open, for no kernel runs on this device."}
    steps = {kernels: _steps(kernels) for kernels in (name, "xla")}
    for own in steps.values():
        own.train(3)
    turns = {kernels: lambda own=own: own.train(STEPS)["seconds"] for kernels, own in steps.items()}
    blocks = harness.in_turn(turns, ROUNDS)
    seconds = {kernels: [second for block in times for second in block] for kernels, times in blocks.items()}
    ours, xla = (statistics.median(times) for times in seconds.values())
    return {
        "seconds": seconds,
        "ratio": xla / ours,
        "text": f"Training step, medium LibriSpeech model, bfloat16, {UTTERANCES} utterances of {SECONDS} s: "
        f"{ours:.4f} s with {name}, {xla:.4f} s with xla alone, {xla / ours:.2f} times as fast",
    }


def _steps(kernels: str) -> Steps:
    changes = {"model.vocab_size": 501, "model.kernels": kernels, "model.positions": "learned"}
    changes |= {"train.compute": "bfloat16", "train.consistency_weight": 0.0, "train.accumulate": 1}
    config = get_config("medium").replace(changes)
    return Steps(config, random_batch(config, UTTERANCES, SECONDS, label_rate=4.0), CHUNK)
