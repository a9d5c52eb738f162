"""Alternatives to the best text: the other texts that a beam holds, with their scores."""

import math
from typing import NamedTuple

import numpy as np

from conformer.decode.greedy import Decoder
from conformer.tokenizer import Tokenizer


class Alternative(NamedTuple):
    """One text."""

    text: str
    score: float  # nats: its log-probability and what language model and hot words add


def alternatives(decoder: Decoder, tokenizer: Tokenizer, count: int) -> list[Alternative]:
    """The best texts of a decoder; one that it spells in several ways stands once, with their sum."""
    scores: dict[str, float] = {}
    for hypothesis in decoder.hypotheses if count else ():
        text = tokenizer.decode([token.id for token in hypothesis.tokens])
        scores[text] = float(np.logaddexp(scores.get(text, -math.inf), hypothesis.score))
    best = sorted(scores.items(), key=lambda item: -item[1])[:count]
    return [Alternative(text, round(score, 4)) for text, score in best]
