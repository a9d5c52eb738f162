"""What a word language model says of words that are not complete yet: language-model look-ahead over a trie.

A beam search that hears of p(word | words before) only at a word's end has long dropped the words that only the model
favours. Hence the model is spread over the letters (Ortmanns, Ney and Eiden, 1996, "Language-model look-ahead for large
vocabulary speech recognition"), here with sums in place of maxima: behind the words h, letters l have

    P(l | h) = sum of p(w | h) over the words w that begin with l,

which makes a letter model of the word model, as exact at a word's end and never looking back. With back-off, the sum is
that of the shorter context, corrected for the words that the model lists behind h alone:

    P(l | h) = sum over listed w of (p(w | h) - backoff(h) p(w | h')) + backoff(h) P(l | h'),   h' = h without its first
"""

import bisect
import math
import warnings
from typing import NamedTuple

import numpy as np

from conformer.language.estimate import train_ngram
from conformer.language.lookup import Lookup
from conformer.language.ngrams import ROOT, NgramModel
from conformer.language.vocabulary import SPECIAL, UNK, LanguageModelError
from conformer.text import listed, strangers
from conformer.tokenizer import Tokenizer

SPELLING_ORDER = 5  # letters of an n-gram of the model of spelling
SPELLING_WORDS = 20_000  # that it learns from at most, the likeliest
FEW = 100  # words that are faster asked for one by one
_LEAST = 1e-300  # of a sum of probabilities: differences of a model that is not interpolated may cancel to nothing


class Correction(NamedTuple):
    """What the words listed behind a context add to the sums of its shorter one: of the first k words, `sums[k]`."""

    words: memoryview  # of their numbers
    sums: memoryview  # one more

    def between(self, first: int, stop: int) -> float:
        """That of the words from `first` up to `stop`."""
        low = bisect.bisect_left(self.words, first)
        return self.sums[bisect.bisect_left(self.words, stop, low)] - self.sums[low]


class Lexicon:
    """The words of a model that a tokenizer can spell, as a trie.

    The words are in alphabetical order, so those that begin alike are neighbours, and what a model says of them all is
    a difference of two running sums. Nothing grows with the size of the model; what is asked for is remembered.

    Words are taken in the spelling of the tokenizer's training texts. Warns of those that cannot be spelled. Raises
    LanguageModelError when none can be.
    """

    def __init__(self, model: NgramModel, tokenizer: Tokenizer):
        self.model = model = model.spelled(tokenizer.normalise)
        left_out = [word for word in model.words if not tokenizer.alphabet.issuperset(word)]
        if len(left_out) == len(model.words):
            raise LanguageModelError(
                "the tokenizer can spell no word of the language model: is it of another language?"
            )
        if left_out:
            warnings.warn(
                f"{len(left_out)} of {len(model.words)} words of the language model are left out: they hold characters "
                f"that the tokenizer has not: {listed(strangers(left_out, tokenizer.alphabet))}",
                stacklevel=2,
            )
        self._usable = np.ones(len(model.vocabulary))
        self._usable[[*range(len(SPECIAL)), *model.vocabulary.ids(left_out)]] = 0.0
        self._num_usable = np.concatenate([[0], np.cumsum(self._usable)]).tolist()
        probs = self._usable * np.exp(model.log_probs(1 + np.arange(len(model.vocabulary))))
        self._sums = np.concatenate([[0.0], np.cumsum(probs)])  # without context
        self.root = Node(self, len(SPECIAL), len(model.vocabulary), 0)
        likely = np.argsort(-probs, kind="stable")[: min(SPELLING_WORDS, len(model.words) - len(left_out))]
        words = (model.vocabulary.words[id] for id in likely)
        self.spelling = train_ngram((" ".join(word) for word in words), SPELLING_ORDER)
        self._letters = {word: id for id, word in enumerate(self.spelling.vocabulary.words)}
        self._corrections: dict[int, Correction] = {}
        self._terms: dict[int, tuple[list[tuple[float, Correction]], float]] = {}
        self._lookup, self._spelling = Lookup(model), Lookup(self.spelling)

    def prob(self, context: int, node: "Node") -> float:
        """P(letters of the node | context)."""
        if (terms := self._terms.get(context)) is None:
            terms = self._terms[context] = self._expand(context)
        corrections, scale = terms
        total = scale * node.prob
        for factor, correction in corrections:
            total += factor * correction.between(node.first, node.stop)
        return max(total, _LEAST)

    def follow(self, context: int, id: int) -> tuple[float, int]:
        """ln p of a word behind a context, and the context behind it."""
        return self._lookup.score(context, id)

    def spell(self, context: int, letter: str) -> tuple[float, int]:
        """ln p of a letter of an unknown word, or of `</s>` at its end, and the context behind it."""
        return self._spelling.score(context, self._letters.get(letter, UNK))

    def _expand(self, context: int) -> tuple[list[tuple[float, Correction]], float]:
        """The corrections that the sums behind a context need, with their factors, and the factor of the sums."""
        terms, scale = [], 1.0
        while context != ROOT:
            if (correction := self._corrections.get(context)) is None:
                correction = self._corrections[context] = self._correct(context)
            if len(correction.words):
                terms.append((scale, correction))
            scale *= math.exp(self.model.backoff[context])
            context = int(self.model.suffix[context])
        return terms, scale

    def _correct(self, context: int) -> Correction:
        """From the words listed behind a context."""
        model = self.model
        first, stop = int(model.begin[context]), int(model.begin[context + 1])
        words, suffix = model.word[first:stop].astype(np.int64), int(model.suffix[context])
        if len(words) < FEW:
            shorter = np.array([self._lookup.score(suffix, word)[0] for word in words.tolist()])
        else:
            shorter = model.score(np.full(len(words), suffix), words)[0]
        shorter += model.backoff[context]
        gains = self._usable[words] * (np.exp(model.log_prob[first:stop]) - np.exp(shorter))
        return Correction(memoryview(words), memoryview(np.concatenate([[0.0], np.cumsum(gains)])))


class Node:
    """The beginning of words: those whose numbers lie in [first, stop)."""

    __slots__ = ("_children", "_depth", "_lexicon", "first", "prob", "stop", "word")

    def __init__(self, lexicon: Lexicon, first: int, stop: int, depth: int):
        self._lexicon, self._depth = lexicon, depth  # letters of the beginning
        self.first, self.stop = first, stop
        self.prob = float(lexicon._sums[stop] - lexicon._sums[first])  # of its words, without context
        complete = depth > 0 and len(lexicon.model.vocabulary.words[first]) == depth and lexicon._usable[first]
        self.word = first if complete else None  # the word that ends here
        self._children: dict[str, Node | None] = {}

    def child(self, letter: str) -> "Node | None":
        """The beginning with one letter more; None where no word has it."""
        if letter not in self._children:
            words, depth = self._lexicon.model.vocabulary.words, self._depth
            low = bisect.bisect_left(words, letter, self.first, self.stop, key=lambda word: word[depth : depth + 1])
            high = bisect.bisect_right(words, letter, low, self.stop, key=lambda word: word[depth : depth + 1])
            some = self._lexicon._num_usable[low] < self._lexicon._num_usable[high]
            self._children[letter] = Node(self._lexicon, low, high, depth + 1) if some else None
        return self._children[letter]
