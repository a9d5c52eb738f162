"""Mixes n-gram models: the weighted mean of their probabilities, with the weights that are best on a dev text."""

from collections.abc import Sequence

import numpy as np

from conformer.language.ngrams import ROOT, Level, NgramModel, join, split
from conformer.language.perplexity import word_log_probs
from conformer.language.prune import renormalise
from conformer.language.vocabulary import UNK, Vocabulary
from kernels.typing import Float

_ROUNDS = 50  # of expectation and maximisation; the weights stand still long before


def best_weights(models: Sequence[NgramModel], texts: Sequence[str]) -> Float[np.ndarray, " models"]:
    """The weights under which texts are most probable, words that no model lists aside."""
    words = [text.split() for text in texts]
    probs = []
    for model in models:
        log_probs, ids = word_log_probs(model, words)
        probs.append(np.where(ids == UNK, 0.0, np.exp(log_probs)))
    table = np.stack(probs)
    table = table[:, table.any(0)]
    weights = np.full(len(models), 1 / len(models))
    for _ in range(_ROUNDS):
        shares = weights[:, None] * table
        weights = (shares / shares.sum(0)).mean(1)
    return weights


def mix(models: Sequence[NgramModel], weights: Sequence[float] | np.ndarray) -> NgramModel:
    """Returns one model that lists what any of the models lists: p(w | h) = sum of weight p(w | h).

    A model that does not list a word takes it for unlikely, not for `<unk>`.
    """
    vocabulary = Vocabulary(word for model in models for word in model.words)
    theirs = [model.vocabulary.ids(vocabulary.words) for model in models]  # their numbers for its words
    ours = [vocabulary.ids(model.vocabulary.words) for model in models]
    places = [np.zeros(1, np.int64) for _ in models]  # of their n-grams among the joint ones
    states = [np.full(1, ROOT) for _ in models]  # what they know of the joint ones
    levels: list[Level] = []
    grams = [model.levels() for model in models]
    for n in range(max(model.order for model in models)):
        keys = [
            join(place[rows[n].parent], ids[rows[n].word]) if n < len(rows) else np.zeros(0, np.int64)
            for place, rows, ids in zip(places, grams, ours, strict=True)
        ]
        joint = np.unique(np.concatenate(keys))
        places = [np.searchsorted(joint, key) for key in keys]
        parent, word = split(joint)
        prob = np.zeros(len(joint))
        for index, (model, weight, ids) in enumerate(zip(models, weights, theirs, strict=True)):
            log_probs, states[index] = model.score(states[index][parent], ids[word])
            prob += weight * np.where((ids[word] == UNK) & (word != UNK), 0.0, np.exp(log_probs))
        levels.append(Level(parent, word, np.log(np.maximum(prob, 1e-43)), np.zeros(len(joint))))
    return renormalise(NgramModel.of(vocabulary, levels))
