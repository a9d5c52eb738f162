"""Differences of error rates between trials that recognised the same recordings, paired over utterances."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np

from conformer.evaluation.scorer import interval


def paired(workdir: pathlib.Path, names: Iterable[str]) -> list[dict]:
    """Compares each trial with the first one before it that recognised the same recordings, as whole utterances.

    An interval that does not hold 0 is a difference, even where the intervals of the two error rates overlap: both
    trials find the same recordings hard.

    Args:
        workdir: folder of the sweep; what eval.py wrote to NAME/errors.jsonl is read.

    Returns:
        trial, baseline, and `wer_difference` (below 0: the trial is better) with its 95 % interval, a row a comparison.
    """
    rows, baselines = [], {}
    for name in names:
        path = workdir / name / "errors.jsonl"
        if not path.exists():
            continue
        lines = sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["id"])
        texts = tuple((line["id"], line["ref"]) for line in lines)
        errors = np.array([line["errors"] for line in lines])
        baseline, theirs = baselines.setdefault(texts, (name, errors))
        if baseline == name:
            continue
        words = np.array([len(text.split()) for _, text in texts])
        more = errors - theirs
        low, high = interval(more, words)
        difference = float(more.sum() / words.sum())
        rows.append({"trial": name, "baseline": baseline, "wer_difference": difference, "low": low, "high": high})
    return rows
