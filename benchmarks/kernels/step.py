"""A training step of the medium LibriSpeech model, with our kernels and with XLA alone."""

import dataclasses
import statistics
from typing import Any

from benchmarks.kernels.contestants import kernel_here
from benchmarks.training import FeatureBatch, JaxTrainer
from configs.librispeech import get_config

UTTERANCES, SECONDS = 58, 16.5  # the batch of one of its buckets
CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4
STEPS, ROUNDS = 10, 5


def compare() -> dict[str, Any]:
    """Times of both in alternation, and their ratio; where there is no kernel, that the figure is left open."""
    name = kernel_here()
    if name is None:
        return {"text": "The training step with kernels: left open, for no kernel runs on this device."}
    seconds: dict[str, list[float]] = {name: [], "xla": []}
    trainers = {kernels: _trainer(kernels) for kernels in seconds}
    for trainer in trainers.values():
        trainer.train(3)
    for turn in range(ROUNDS):
        for kernels in list(trainers)[:: 1 if turn % 2 == 0 else -1]:
            seconds[kernels] += trainers[kernels].train(STEPS)["seconds"]
    ours, xla = (statistics.median(times) for times in seconds.values())
    return {
        "seconds": seconds,
        "ratio": xla / ours,
        "text": f"Training step, medium LibriSpeech model, bfloat16, {UTTERANCES} utterances of {SECONDS} s: "
        f"{ours:.4f} s with {name}, {xla:.4f} s with xla alone, {xla / ours:.2f} times as fast",
    }


def _trainer(kernels: str) -> JaxTrainer:
    config = get_config("medium")
    config.model.vocab_size = 1025
    config.model.kernels = kernels
    config.train = dataclasses.replace(config.train, compute="bfloat16")
    batch = FeatureBatch.random(config, UTTERANCES, SECONDS, label_rate=4.0)
    return JaxTrainer(config, batch, CHUNK_SIZE, NUM_LEFT_CHUNKS)
