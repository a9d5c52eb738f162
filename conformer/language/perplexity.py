"""The perplexity of a language model on texts."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from conformer.language.ngrams import NgramModel
from conformer.language.vocabulary import END, UNK, LanguageModelError
from kernels.typing import Float


class Fit(NamedTuple):
    """The figures of how well a model predicts texts."""

    perplexity: float  # of the words it lists and the ends of sentences
    words: int
    unknown: int  # words that it does not list
    bits: float  # a letter, of all words: an unknown one is `<unk>` and its letters, each as likely as any

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.1f}, {self.unknown / self.words:.1%} of {self.words} words unknown; "
            f"{self.bits:.3f} bits a letter with these"
        )


def measure(model: NgramModel, texts: Iterable[str]) -> Fit:
    """Perplexity exp(-mean ln p) over the listed words of texts, and bits a letter over all words.

    The first is lower for a model that lists fewer words; the second can be compared. Raises LanguageModelError.
    """
    split = [text.split() for text in texts]
    if not split:
        raise LanguageModelError("there are no texts to measure a language model on")
    log_probs, ids = word_log_probs(model, split)
    known, unknown = log_probs[ids != UNK], ids == UNK
    words = [word for text in split for word in text]
    alphabet = len(set("".join(words))) + 1  # and the end of a word
    letters = [len(word) + 1 for text in split for word in (*text, "")]
    spelled = sum(length for length, new in zip(letters, unknown, strict=True) if new) * math.log(alphabet)
    return Fit(
        math.exp(-known.mean()),
        len(words),
        int(unknown.sum()),
        (spelled - log_probs.sum()) / math.log(2) / max(sum(letters), 1),
    )


def word_log_probs(model: NgramModel, texts: list[list[str]]) -> tuple[Float[np.ndarray, " words"], np.ndarray]:
    """ln p of each word of texts and of their ends, and their numbers; all texts are followed side by side."""
    ids = [[*model.vocabulary.ids(text).tolist(), END] for text in texts]
    found = [np.zeros(len(row)) for row in ids]
    states = np.full(len(ids), model.start)
    for place in range(max(map(len, ids))):
        rows = [row for row, words in enumerate(ids) if place < len(words)]
        log_probs, states[rows] = model.score(states[rows], np.array([ids[row][place] for row in rows]))
        for row, log_prob in zip(rows, log_probs, strict=True):
            found[row][place] = log_prob
    return np.concatenate(found), np.concatenate([np.array(row) for row in ids])
