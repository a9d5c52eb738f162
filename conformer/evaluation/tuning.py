"""Tunes the settings of a search on log-probabilities that were computed before."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from conformer.data import Utterance
from conformer.decode.lexicon import Lexicon
from conformer.decode.search import Search, make_decoding
from conformer.evaluation.offline import decode
from conformer.evaluation.scorer import Score
from conformer.language.ngrams import NgramModel
from conformer.tokenizer import Tokenizer

TUNABLE = {field.name: type(field.default) for field in dataclasses.fields(Search) if field.type in (int, float)}


class TuningError(ValueError):
    """Settings that cannot be tried; the message names them."""


def read_grid(settings: Sequence[str], search: Search) -> list[Search]:
    """Every combination of settings such as "lm-weight=0.3,0.5"; the others are those of `search`. TuningError."""
    axes = {}
    for setting in settings:
        name, _, values = setting.partition("=")
        field = name.strip().replace("-", "_")
        if field not in TUNABLE:
            known = ", ".join(known.replace("_", "-") for known in TUNABLE)
            raise TuningError(f"--tune={setting}: there is no setting {name!r}: choose of {known}")
        try:
            axes[field] = [TUNABLE[field](value) for value in values.split(",")]
        except ValueError:
            raise TuningError(f"--tune={setting} must list numbers, as in --tune=lm-weight=0.3,0.5") from None
    return [
        dataclasses.replace(search, **dict(zip(axes, point, strict=True)))
        for point in itertools.product(*axes.values())
    ]


def tune(
    heard: Iterable[tuple[Utterance, np.ndarray]],
    tokenizer: Tokenizer,
    lm: NgramModel | Lexicon | None,
    grid: Sequence[Search],
    report: Callable[[Search, Score], None],
) -> list[tuple[Search, Score]]:
    """All searches of a grid with their scores, the fewest word errors first.

    `heard` is iterated once a search; `report` is told of each when it is done.
    """
    trials = []
    for search in grid:
        score = decode(heard, {}, *make_decoding(search, tokenizer, lm)).score()
        report(search, score)
        trials.append((search, score))
    return sorted(trials, key=lambda trial: (trial[1].errors, trial[1].cer))
