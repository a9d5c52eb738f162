"""Prunes an n-gram model: drops the n-grams whose loss changes it least, and computes the back-offs anew.

Stolcke, 1998, "Entropy-based pruning of backoff language models": an n-gram is dropped where that raises the perplexity
of the model's own texts by less than a threshold, a part of 1.
"""

import numpy as np

from conformer.language.estimate import renumber
from conformer.language.ngrams import NgramModel
from conformer.language.vocabulary import END, START
from kernels.typing import Float

_BLOCK = 1 << 20  # n-grams looked up at a time
_LEAST = 1e-12  # of a probability that is left over; rounding can take it all


def prune(model: NgramModel, threshold: float) -> NgramModel:
    """Drops n-grams of two words and more, but for those that longer ones begin with."""
    history = np.zeros(len(model.word))  # ln p of all words of a context
    for first, stop in zip(model.starts[1:], model.starts[2:], strict=False):
        nodes = np.arange(first, stop)
        history[nodes] = history[model.parents(nodes)] + model.log_probs(nodes)
        if first == 1:
            history[1 + START] = history[1 + END]  # as many sentences begin as end
    kept = [np.ones(stop - first, bool) for first, stop in zip(model.starts[1:], model.starts[2:], strict=False)]
    for n in range(model.order, 1, -1):
        first, stop = model.starts[n], model.starts[n + 1]
        nodes = np.arange(first, stop)
        context, log_prob, lower = model.parents(nodes), model.log_probs(nodes), _lower(model, nodes)
        prob, lower_prob = np.exp(log_prob), np.exp(lower)
        rest, lower_rest = (
            1 - np.bincount(context, values, minlength=model.starts[n]) for values in (prob, lower_prob)
        )
        rest, lower_rest = np.maximum(rest, _LEAST)[context], np.maximum(lower_rest, _LEAST)[context]
        before, after = np.log(rest / lower_rest), np.log((rest + prob) / (lower_rest + lower_prob))
        loss = -np.exp(history[context]) * (prob * (lower + after - log_prob) + rest * (after - before))
        kept[n - 1] = np.expm1(loss) >= threshold
        if n < model.order:
            kept[n - 1][model.parents(model.starts[n + 1] + np.flatnonzero(kept[n])) - first] = True
    levels = [
        level._replace(**{name: getattr(level, name)[mask] for name in level._fields})
        for level, mask in zip(model.levels(), kept, strict=True)
    ]
    return renormalise(NgramModel.of(model.vocabulary, renumber(levels, kept)))


def renormalise(model: NgramModel) -> NgramModel:
    """The model with back-offs so that the probabilities behind each context sum to 1."""
    backoff = model.backoff = np.zeros(model.starts[-2])  # it is read while it grows
    for n in range(2, model.order + 1):
        nodes = np.arange(model.starts[n], model.starts[n + 1])
        context = model.parents(nodes)
        listed = np.unique(context)
        rest, lower_rest = (
            1 - np.bincount(context, np.exp(values), minlength=model.starts[n])[listed]
            for values in (model.log_probs(nodes), _lower(model, nodes))
        )
        backoff[listed] = np.log(np.maximum(rest, _LEAST) / np.maximum(lower_rest, _LEAST))
    return NgramModel(model.vocabulary, model.starts, model.word, model.log_prob, backoff, model.begin)


def _lower(model: NgramModel, nodes: np.ndarray) -> Float[np.ndarray, " nodes"]:
    """ln p of the last word of each, behind its context without the first word."""
    found = np.empty(len(nodes))
    for start in range(0, len(nodes), _BLOCK):
        some = nodes[start : start + _BLOCK]
        found[start : start + _BLOCK] = model.score(model.suffix[model.parents(some)], model.word[some])[0]
    return found
