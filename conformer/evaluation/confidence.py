"""The calibration of confidences: which words were right, the fit, its error."""

from collections.abc import Sequence
from typing import NamedTuple

import jiwer
import numpy as np

from conformer.decode.confidence import Confidence
from conformer.evaluation.offline import Transcripts
from conformer.text import normalise
from kernels.typing import Bool, Float

BINS = 10  # of the calibration error, of equal width
NEWTON_STEPS = 50
RIDGE = 1.0  # pulls a fit towards no calibration, like so many words would


class Judged(NamedTuple):
    """The words of an utterance."""

    evidence: Float[np.ndarray, " words"]  # see `Peaks.evidence`
    right: Bool[np.ndarray, " words"]


def judge(transcripts: Transcripts) -> list[Judged]:
    """Judges the words recognised in whole utterances right or wrong; utterances without words are left out."""
    return [
        Judged(heard.evidence, right_words(utterance.text, heard.words, transcripts.level))
        for utterance, heard in zip(transcripts.utterances, transcripts.heard, strict=True)
        if heard.words
    ]


def right_words(reference: str, words: Sequence[str], level: str) -> Bool[np.ndarray, " words"]:
    """Returns which of the words are right, by alignment with a reference that `normalise` spells at `level`."""
    right = np.zeros(len(words), bool)
    alignment = jiwer.process_words(normalise(reference, level), " ".join(words)).alignments[0] if reference else []
    for chunk in alignment:
        if chunk.type == "equal":
            right[chunk.hyp_start_idx : chunk.hyp_end_idx] = True
    return right


def fit(judged: Sequence[Judged]) -> Confidence:
    """The calibration that makes what was right and wrong most likely: logistic regression, by Newton's method."""
    rows = [
        np.stack([j.evidence, np.full(len(j.evidence), j.evidence.mean()), np.ones(len(j.evidence))], 1) for j in judged
    ]
    x, y = np.concatenate(rows), np.concatenate([j.right for j in judged])
    start = np.array([1.0, 0.0, 0.0])
    weights = start
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(x @ weights)))
        gradient = x.T @ (p - y) + RIDGE * (weights - start)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(3)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step * min(1.0, 1.0 / np.abs(step).max())  # far from the end, whole steps may go too far
    return Confidence(*(round(float(weight), 4) for weight in weights))


def calibration_error(judged: Sequence[Judged], confidence: Confidence) -> dict[str, float]:
    """The expected calibration error of words and of segments, which are whole utterances here.

    It says how far, on average, the share that is right lies from the confidence.
    """
    said, right = [confidence.of(j.evidence) for j in judged], [j.right for j in judged]
    return {
        "words": _error(np.concatenate(said), np.concatenate(right)),
        "segments": _error(np.array([words.mean() for words in said]), np.array([words.mean() for words in right])),
    }


def _error(said: np.ndarray, right: np.ndarray) -> float:
    bins = np.minimum((said * BINS).astype(int), BINS - 1)
    gaps = [abs(said[bins == b].sum() - right[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(said))
