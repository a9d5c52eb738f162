"""Counts n-grams and estimates their probabilities: modified Kneser-Ney smoothing, interpolated.

Kneser and Ney, 1995; Chen and Goodman, 1999, "An empirical study of smoothing techniques for language modeling",
section 4.4. With c the counts, for shorter n-grams replaced by the number of distinct words seen before them, and n_i
the number of n-grams of count i,

    p(w | h) = (c(h w) - D(c(h w))) / sum_v c(h v) + backoff(h) p(w | h without its first word)
    p(w | nothing) = 1 / V
    D(1) = 1 - 2 Y n_2 / n_1,   D(2) = 2 - 3 Y n_3 / n_2,   D(3 and more) = 3 - 4 Y n_4 / n_3,   Y = n_1 / (n_1 + 2 n_2)

where backoff(h) is what the discounts, and the n-grams that are dropped for being rare, leave over. Counting is
sorting: an n-gram is the place of its first n - 1 words among the shorter ones, and its last word, in one number.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from conformer.language.ngrams import NEVER, Level, NgramModel, join, split
from conformer.language.texts import numbers
from conformer.language.vocabulary import START, LanguageModelError, Vocabulary
from kernels.typing import Bool, Float, Int

FALLBACK_DISCOUNT = 0.5  # of texts without n-grams of count 1, or of count 2
_BLOCK = 1 << 22  # positions looked up at a time


class Counts(NamedTuple):
    """The n-grams of one length in the texts, in the order of parent and word."""

    parent: Int[np.ndarray, "_"]
    word: Int[np.ndarray, "_"]
    suffix: Int[np.ndarray, "_"]  # place of the n-gram without its first word among those one shorter
    count: Int[np.ndarray, "_"]
    opens: Bool[np.ndarray, "_"]  # begins a sentence


def train_ngram(
    texts: Iterable[str], order: int = 3, min_counts: Sequence[int] = (), limit: int | None = None
) -> NgramModel:
    """Trains on sentences of words, or of tokens: `" ".join(tokenizer.symbols[id] for id in tokenizer.encode(text))`.

    Probabilities of the words, `</s>` and `<unk>` sum to 1 in every context.

    Args:
        min_counts: the least count of an n-gram that is listed, for lengths 1, 2, ... (1 where it ends); that of 1 has
            no effect: `limit` is for words.
        limit: words to list, the most frequent; the others are `<unk>`.

    Raises:
        LanguageModelError: when there is no text, when one holds `<s>`, `</s>` or `<unk>`, and for an order below 1.
    """
    if order < 1:
        raise LanguageModelError(f"order={order} must be at least 1")
    vocabulary, ids = numbers(texts, limit)
    counts = count_ngrams(ids, len(vocabulary), order)
    del ids  # of long texts all of this is large
    return estimate(vocabulary, counts, min_counts)


def count_ngrams(ids: Int[np.ndarray, " words"], num_words: int, order: int) -> list[Counts]:
    """The n-grams of texts that are numbers, those of one word first, each with how often it occurs."""
    words = np.arange(num_words)
    nowhere = np.zeros(num_words, np.int32)
    found = [Counts(nowhere, words, nowhere, np.bincount(ids, minlength=num_words), words == START)]
    place = ids.astype(np.int32, copy=True)  # of the n-gram that begins here; -1 where its sentence ends before it
    for n in range(2, order + 1):
        shorter = found[-1]
        place = place[:-1]
        place[ids[n - 1 :] == START] = -1
        whole = place >= 0
        keys = join(place[whole], ids[n - 1 :][whole])
        keys.sort()
        first = np.append(np.flatnonzero(np.diff(keys, prepend=-1)), len(keys))
        keys, count = keys[first[:-1]], np.diff(first).astype(np.int32)
        parent, word = (part.astype(np.int32) for part in split(keys))
        if n == 2:
            suffix = word
        else:
            known = join(shorter.parent, shorter.word)
            suffix = np.searchsorted(known, join(shorter.suffix[parent], word)).astype(np.int32)
        found.append(Counts(parent, word, suffix, count, shorter.opens[parent]))
        if n < order:
            for start in range(0, len(place), _BLOCK):
                block = slice(start, start + _BLOCK)
                wanted = join(np.maximum(place[block], 0), ids[n - 1 :][block])
                place[block] = np.where(place[block] < 0, -1, np.searchsorted(keys, wanted))
    return found


def estimate(vocabulary: Vocabulary, counts: Sequence[Counts], min_counts: Sequence[int] = ()) -> NgramModel:
    """The model of counted n-grams; see the module."""
    kept = _kept(counts, min_counts)
    levels: list[Level] = []
    shorter = np.full(len(vocabulary), 1 / (len(vocabulary) - 1))  # probabilities: of all words but `<s>`
    for n, level in enumerate(counts):
        count = level.count if n + 1 == len(counts) else _continuations(level, counts[n + 1])
        if n == 0:
            count[START] = 0  # it is never predicted
        contexts = len(counts[n - 1].word) if n else 1
        total = np.maximum(np.bincount(level.parent, count, minlength=contexts), 1e-300)
        left_over = np.where(kept[n], discounts(count)[np.minimum(count, 3)], count)
        backoff = np.bincount(level.parent, left_over, minlength=contexts) / total
        prob = count - left_over
        del count, left_over  # there are many of the longest
        prob /= total[level.parent]
        prob += backoff[level.parent] * shorter[level.suffix]
        if n:
            listed = np.bincount(level.parent[kept[n]], minlength=contexts) > 0
            levels[-1] = levels[-1]._replace(backoff=np.log(np.where(listed, backoff, 1.0))[kept[n - 1]])
        with np.errstate(divide="ignore"):
            log_prob = np.log(prob[kept[n]])
        levels.append(Level(level.parent[kept[n]], level.word[kept[n]], log_prob, np.zeros(len(log_prob))))
        shorter = prob
    levels[0].log_prob[START] = NEVER
    return NgramModel.of(vocabulary, renumber(levels, kept))


def discounts(counts: Int[np.ndarray, " ngrams"]) -> Float[np.ndarray, " 4"]:
    """Returns D of counts 0, 1, 2, and 3 or more. With few texts all three are Y; with too few for Y, 0.5."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    one = n[0] / (n[0] + 2 * n[1]) if n[0] and n[1] else FALLBACK_DISCOUNT
    of = np.arange(1, 4)
    found = of - (of + 1) * one * n[1:] / np.maximum(n[:-1], 1)
    enough = n.all() and ((found > 0) & (found < of)).all()
    return np.concatenate([[0], found if enough else np.full(3, one)])


def renumber(levels: Iterable[Level], kept: Sequence[np.ndarray]) -> list[Level]:
    """Renumbers the parents of n-grams: from places among all of one length to places among those kept."""
    places = [np.zeros(1, np.int32), *(np.cumsum(mask, dtype=np.int32) - 1 for mask in kept)]
    return [level._replace(parent=place[level.parent]) for level, place in zip(levels, places, strict=False)]


def _continuations(level: Counts, longer: Counts) -> np.ndarray:
    """Counts the distinct words seen before each n-gram; for n-grams that open a sentence, their occurrences."""
    return np.where(level.opens, level.count, np.bincount(longer.suffix, minlength=len(level.word)))


def _kept(counts: Sequence[Counts], min_counts: Sequence[int]) -> list[np.ndarray]:
    """Returns which n-grams are listed: those that are frequent enough, or begin one that is."""
    least = [0, *min_counts[1:], *[1] * len(counts)]
    kept = [level.count >= least[n] for n, level in enumerate(counts)]
    for n in range(len(counts) - 1, 0, -1):
        kept[n - 1][counts[n].parent[kept[n]]] = True
    return kept
