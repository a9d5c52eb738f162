"""Chooses a part of a corpus: utterances of some words, or some minutes to train on."""

import math
from collections.abc import Sequence

from conformer.config import DataConfig
from conformer.data.manifest import Utterance
from conformer.data.splits import hash_of


def subset(config: DataConfig, utterances: Sequence[Utterance]) -> list[Utterance]:
    """Returns the utterances that hold only `data.words`; of the train splits, at most `data.train_minutes` of speech.

    The minutes are drawn by ids, so that fewer minutes are a part of more.
    """
    if words := set(config.words):
        utterances = [utterance for utterance in utterances if words.issuperset(utterance.text.split())]
    if not config.train_minutes:
        return list(utterances)
    training = [utterance for utterance in utterances if utterance.split in config.train_splits]
    seconds, chosen = 0.0, set()
    for utterance in sorted(training, key=lambda utterance: hash_of(utterance.id)):
        seconds += 0.0 if math.isnan(utterance.duration) else utterance.duration
        if seconds > 60 * config.train_minutes:
            break
        chosen.add(utterance.id)
    return [u for u in utterances if u.split not in config.train_splits or u.id in chosen]
