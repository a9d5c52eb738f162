"""How far artefacts are from JAX float32 on real speech: the same windows, each artefact with a state of its own."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from conformer.artefacts.geometry import Geometry
from conformer.artefacts.runtime import Runtime
from conformer.config import Config
from conformer.data import Utterance
from conformer.decode.greedy import greedy
from conformer.evaluation.scorer import score
from conformer.export.pipeline import windows_of
from conformer.model import ConformerCTC
from conformer.streaming.engine import Engine
from conformer.tokenizer import Tokenizer

REFERENCE = "JAX float32"
TIMED_STEPS, ROUNDS = 20, 5


class Parity:
    """Utterances as streams, and what JAX float32 makes of them."""

    def __init__(
        self,
        config: Config,
        model: ConformerCTC,
        tokenizer: Tokenizer,
        utterances: Sequence[Utterance],
        geometry: Geometry,
    ):
        self._tokenizer = tokenizer
        self._references = [utterance.text for utterance in utterances]
        rate = config.features.sample_rate
        self._streams = [
            list(windows_of(config, tokenizer, geometry.chunk_size, utterance.samples(rate)))
            for utterance in utterances
        ]
        self._engine = engine = Engine(
            config, model, chunk_size=geometry.chunk_size, num_left_chunks=geometry.num_left_chunks
        )
        engine.warm_up()
        self._expected = self._run(engine)
        self.reference = self._figures(self._expected)

    def measure(self, runtime: Runtime) -> dict[str, Any]:
        """The figures of an artefact.

        Differences are of log-probabilities: the largest, the mean, the mean Kullback-Leibler divergence of a frame,
        sum_k p_k (log p_k - log q_k) with p of JAX, in nats, and the share of frames with the same best unit.
        """
        results = self._run(runtime)
        p, q = np.concatenate(self._expected), np.concatenate(results)
        return self._figures(results) | {
            "max_difference": float(np.abs(p - q).max()),
            "mean_difference": float(np.abs(p - q).mean()),
            "kl": float((np.exp(p) * (p - q)).sum(axis=1).mean()),
            "same_argmax": float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        }

    def time(self, runtimes: dict[str, Runtime]) -> dict[str, float]:
        """Processor seconds of a step of each artefact, and of JAX as REFERENCE: medians of rounds in turn.

        The processor's seconds, not the clock's: other work on the machine then counts for little. On one core.
        """
        windows = [window for stream in self._streams for window in stream][:TIMED_STEPS]
        seconds = {name: [] for name in (REFERENCE, *runtimes)}
        for _ in range(ROUNDS):
            for name, engine in ({REFERENCE: self._engine} | runtimes).items():
                engine.reset()
                for window in windows:
                    num_frames = np.full(1, window.num_frames, np.int32)
                    start = time.process_time()
                    engine(window.features[None], num_frames)
                    seconds[name].append(time.process_time() - start)
        return {name: statistics.median(steps) for name, steps in seconds.items()}

    def _run(self, engine: Engine | Runtime) -> list[np.ndarray]:
        """Log-probabilities of each utterance."""
        results = []
        for stream in self._streams:
            engine.reset()
            chunks = [engine(w.features[None], np.full(1, w.num_frames, np.int32))[0, : w.num_frames] for w in stream]
            results.append(np.concatenate(chunks))
        return results

    def _figures(self, results: list[np.ndarray]) -> dict[str, Any]:
        texts = [self._tokenizer.decode([token.id for token in greedy(log_probs)]) for log_probs in results]
        scored = score(self._references, texts)
        return {"wer": scored.wer, "errors": scored.errors, "words": scored.words}
