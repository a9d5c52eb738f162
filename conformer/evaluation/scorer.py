"""Word and character error rates over a corpus, with a confidence interval; jiwer aligns the words.

WER = (substitutions + deletions + insertions) / words of the references, summed over the corpus. Both sides
are spelled as `conformer.text.normalise` does. The interval is a bootstrap over utterances (Bisani and Ney, 2004,
"Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP).
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np

from conformer import system
from conformer.text import normalise
from kernels.typing import Int

BOOTSTRAP_RESAMPLES = 1_000
BOOTSTRAP_SEED = 0


class ScoreError(ValueError):
    """References and hypotheses that have no error rate; the message says why."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Error counts in words; rates are fractions (1.0 = as many errors as reference words) and can exceed 1."""

    words: int  # in the references
    errors: int
    substitutions: int
    deletions: int
    insertions: int
    wer: float
    wer_low: float  # 2.5th percentile of the bootstrap
    wer_high: float  # 97.5th percentile
    cer: float  # spaces between words count as characters
    utterances: int

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as stored in JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"WER {self.wer:.2%} (95 % interval {self.wer_low:.2%} to {self.wer_high:.2%}), CER {self.cer:.2%}: "
            f"{self.errors} errors in {self.words} words of {self.utterances} utterances "
            f"({self.substitutions} substituted, {self.deletions} deleted, {self.insertions} inserted)"
        )


def score(references: Sequence[str], hypotheses: Sequence[str], level: str = "basic") -> Score:
    """Scores hypotheses against the references of the same utterances.

    An empty hypothesis counts its reference as deleted, an empty reference its hypothesis as inserted. Raises
    ScoreError when the two differ in number, or when the references hold no word.
    """
    return score_each(references, hypotheses, level)[0]


def score_each(
    references: Sequence[str], hypotheses: Sequence[str], level: str = "basic"
) -> tuple[Score, Int[np.ndarray, " utterances"]]:
    """Returns what `score` does, and the word errors of each utterance. Raises ScoreError as `score` does."""
    output = _align(references, hypotheses, level)
    words = np.array([len(reference) for reference in output.references])
    if not words.any():
        raise ScoreError(f"none of the {len(words)} references holds a word: check the transcripts")
    errors = np.array([sum(_counts(alignment).values()) for alignment in output.alignments])
    low, high = interval(errors, words)
    characters = jiwer.process_characters(_normalised(references, level), _normalised(hypotheses, level))
    scored = Score(
        words=int(words.sum()),
        errors=int(errors.sum()),
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        wer=float(errors.sum() / words.sum()),
        wer_low=low,
        wer_high=high,
        cer=float(characters.cer),
        utterances=len(words),
    )
    return scored, errors


def difference(errors: np.ndarray, theirs: np.ndarray, references: Sequence[str]) -> dict[str, float]:
    """Compares two recognisers of the same utterances by the errors that each made in each of them.

    Returns:
        `wer_difference` (below 0: the first is better), and the 95 % interval of it, `low` and `high`. An interval that
        does not hold 0 is a difference, even where the intervals of the two error rates overlap: both recognisers find
        the same utterances hard.
    """
    more, words = errors - theirs, np.array([len(text.split()) for text in references])
    low, high = interval(more, words)
    return {"wer_difference": float(more.sum() / words.sum()), "low": low, "high": high}


def write_errors(
    path: str | pathlib.Path,
    ids: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    level: str = "basic",
    details: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes one JSON object a line for each utterance, most errors first; `details` are added to each.

    `aligned` is the reference with each error in braces: `{said → heard}`, `{deleted → *}`, `{* → inserted}`. `wer` is
    null where the reference is empty and the hypothesis is not. Raises ScoreError when the lists differ in length.
    """
    output = _align(references, hypotheses, level)
    if len(ids) != len(references):
        raise ScoreError(f"{len(ids)} ids for {len(references)} utterances: give one for each")
    rows = []
    parts = (ids, output.references, output.hypotheses, output.alignments, details or [{}] * len(ids))
    for id, ref, hyp, alignment, detail in zip(*parts, strict=True):
        counts = _counts(alignment)
        errors = sum(counts.values())
        wer = round(errors / len(ref), 4) if ref else None if hyp else 0.0
        texts = {"ref": " ".join(ref), "hyp": " ".join(hyp), "aligned": _marked(ref, hyp, alignment)}
        rows.append({"id": id, "wer": wer, "errors": errors, **counts, **texts, **detail})
    rows.sort(key=lambda row: -row["errors"])
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    system.write_text(pathlib.Path(path), "".join(lines))


def _align(references: Sequence[str], hypotheses: Sequence[str], level: str) -> jiwer.WordOutput:
    if len(references) != len(hypotheses):
        raise ScoreError(f"{len(references)} references, but {len(hypotheses)} hypotheses: give one for each")
    if not references:
        raise ScoreError("there are no utterances to score: check the split")
    return jiwer.process_words(_normalised(references, level), _normalised(hypotheses, level))


def _normalised(texts: Sequence[str], level: str) -> list[str]:
    return [normalise(text, level) for text in texts]


def _counts(alignment: list[jiwer.AlignmentChunk]) -> dict[str, int]:
    counts = {"sub": 0, "del": 0, "ins": 0}
    for chunk in alignment:
        if chunk.type != "equal":
            size = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            counts[chunk.type[:3]] += size
    return counts


def _marked(reference: list[str], hypothesis: list[str], alignment: list[jiwer.AlignmentChunk]) -> str:
    words = []
    for chunk in alignment:
        said = " ".join(reference[chunk.ref_start_idx : chunk.ref_end_idx])
        heard = " ".join(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx])
        words.append(said if chunk.type == "equal" else f"{{{said or '*'} → {heard or '*'}}}")
    return " ".join(words)


def interval(errors: np.ndarray, words: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of a rate of words when as many utterances are drawn again, with replacement.

    Args:
        errors: of each utterance; or how many more one recogniser made than another, for a difference of two rates.
        words: of each utterance.
    """
    num = len(words)
    draws = np.random.default_rng(BOOTSTRAP_SEED).multinomial(num, np.full(num, 1 / num), size=BOOTSTRAP_RESAMPLES)
    # Empty references may be all that is drawn: at least one word keeps that rate finite.
    low, high = np.percentile((draws @ errors) / np.maximum(draws @ words, 1), [2.5, 97.5])
    return float(low), float(high)
