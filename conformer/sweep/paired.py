"""Differences of error rates between trials that recognised the same recordings, paired over utterances."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from conformer.evaluation.scorer import difference


def paired(workdir: pathlib.Path, searches: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    """Compares each trial with the first one before it that recognised the same recordings, as whole utterances.

    Args:
        workdir: folder of the sweep; what eval.py wrote to NAME/errors.jsonl is read.
        searches: settings of the search of each trial, by name; only trials with equal ones are compared.

    Returns:
        trial, baseline, and their `difference`, a row a comparison.
    """
    rows, baselines = [], {}
    for name, search in searches.items():
        path = workdir / name / "errors.jsonl"
        if not path.exists():
            continue
        lines = sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["id"])
        texts = tuple((line["id"], line["ref"]) for line in lines)
        errors = np.array([line["errors"] for line in lines])
        baseline, theirs = baselines.setdefault((texts, json.dumps(dict(search), sort_keys=True)), (name, errors))
        if baseline == name:
            continue
        rows.append({"trial": name, "baseline": baseline} | difference(errors, theirs, [text for _, text in texts]))
    return rows
