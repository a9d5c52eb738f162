"""Compares artefacts with JAX float32 on real speech: the same windows, each artefact with a state of its own."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conformer.data import Utterance
from conformer.decode.greedy import greedy
from conformer.evaluation.scorer import difference, score_each
from conformer.streaming import Stepper, log_probs_of, windows_of
from conformer.tokenizer import Tokenizer

REFERENCE = "JAX float32"
TIMED_STEPS, ROUNDS = 20, 5


class Parity:
    """Utterances as streams, and their results in JAX float32."""

    def __init__(self, engine: Stepper, tokenizer: Tokenizer, utterances: Sequence[Utterance]):
        """`engine` is that of the model in JAX float32."""
        self._engine, self._tokenizer = engine, tokenizer
        self._references = [utterance.text for utterance in utterances]
        rate = engine.framing.features.sample_rate
        self._streams = [list(windows_of(engine.framing, utterance.samples(rate))) for utterance in utterances]
        engine.warm_up()
        self._expected = self._run(engine)
        self.reference, self._errors = self._score(self._expected)

    def measure(self, runtime: Stepper) -> dict[str, Any]:
        """The figures of an artefact, and the `difference` of its errors from those of JAX.

        Other differences are of log-probabilities: the largest, the mean, the mean Kullback-Leibler divergence of a
        frame, sum_k p_k (log p_k - log q_k) with p of JAX, in nats, and the share of frames with the same best unit.
        """
        results = self._run(runtime)
        p, q = np.concatenate(self._expected), np.concatenate(results)
        figures, errors = self._score(results)
        figures |= difference(errors, self._errors, self._references)
        return figures | {
            "max_difference": float(np.abs(p - q).max()),
            "mean_difference": float(np.abs(p - q).mean()),
            "kl": float((np.exp(p) * (p - q)).sum(axis=1).mean()),
            "same_argmax": float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        }

    def time(self, runtimes: Mapping[str, Stepper]) -> dict[str, float]:
        """Processor seconds of a step of each artefact, and of JAX as REFERENCE: medians of rounds in turn.

        The processor's seconds, not the clock's: other work on the machine then counts for little. On one core.
        """
        windows = [window for stream in self._streams for window in stream][:TIMED_STEPS]
        seconds = {name: [] for name in (REFERENCE, *runtimes)}
        for _ in range(ROUNDS):
            for name, stepper in {REFERENCE: self._engine, **runtimes}.items():
                stepper.reset()
                for window in windows:
                    num_frames = np.full(1, window.num_frames, np.int32)
                    start = time.process_time()
                    stepper(window.features[None], num_frames)
                    seconds[name].append(time.process_time() - start)
        return {name: statistics.median(steps) for name, steps in seconds.items()}

    def _run(self, stepper: Stepper) -> list[np.ndarray]:
        """Log-probabilities of each utterance."""
        return [log_probs_of(stepper, stream) for stream in self._streams]

    def _score(self, results: list[np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
        """Error rates of log-probabilities, and the word errors of each utterance."""
        texts = [self._tokenizer.decode([token.id for token in greedy(log_probs)]) for log_probs in results]
        scored, errors = score_each(self._references, texts, self._tokenizer.level)
        return {"wer": scored.wer, "errors": scored.errors, "words": scored.words}, errors
