"""Applies a word language model to words that are not complete yet: language-model look-ahead over a trie.

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
from collections import Counter
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
    """The sums that the words listed behind a context add to those of the shorter context; `sums[k]` of the first k."""

    places: memoryview  # of their spellings
    sums: memoryview  # one more

    def between(self, first: int, stop: int) -> float:
        """Returns the sum over the words whose spellings lie from `first` up to `stop`."""
        low = bisect.bisect_left(self.places, first)
        return self.sums[bisect.bisect_left(self.places, stop, low)] - self.sums[low]


class Lexicon:
    """The words of a model that a tokenizer can spell, as a trie of their spellings: letters, or sounds.

    The spellings are in alphabetical order, so those that begin alike are neighbours, and what a model says of them all
    is a difference of two running sums. Nothing grows with the size of the model; what is asked for is remembered.

    Words are taken in the spelling of the tokenizer's training texts. A word may have several spellings, and several
    words may share one. Warns of words that cannot be spelled. Raises LanguageModelError when none can be.
    """

    def __init__(self, model: NgramModel, tokenizer: Tokenizer):
        self.model = model = model.spelled(tokenizer.normalise)
        alphabet, entries, left_out = tokenizer.alphabet, [], []
        for id, word in enumerate(model.words, len(SPECIAL)):
            spellings = [(spelling, id) for spelling in tokenizer.spellings(word) if alphabet.issuperset(spelling)]
            entries += spellings
            if not spellings:
                left_out.append(word)
        if not entries:
            raise LanguageModelError(
                "the tokenizer can spell no word of the language model: is it of another language?"
            )
        if left_out:
            strange = strangers((spelling for word in left_out for spelling in tokenizer.spellings(word)), alphabet)
            why = (
                f"they hold characters that the tokenizer has not: {listed(strange)}"
                if strange
                else f"{listed(Counter(left_out))} have no pronunciation: install espeak-ng (pip install -e '.[demo]')"
            )
            count = f"{len(left_out)} of {len(model.words)}"
            warnings.warn(f"{count} words of the language model are left out: {why}", stacklevel=2)
        entries.sort()
        self.spellings = [spelling for spelling, _ in entries]
        self.words = np.array([id for _, id in entries])  # the word of each
        self._order = np.argsort(self.words, kind="stable")  # spellings, word after word
        self._begin = np.searchsorted(self.words[self._order], np.arange(len(model.vocabulary) + 1))
        probs = np.exp(model.log_probs(1 + self.words))
        self._sums = np.concatenate([[0.0], np.cumsum(probs)])  # without context
        self.root = Node(self, 0, len(entries), 0)
        likely = np.argsort(-probs, kind="stable")[:SPELLING_WORDS].tolist()
        self.spelling = train_ngram((" ".join(self.spellings[place]) for place in likely), SPELLING_ORDER)
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
            if len(correction.places):
                terms.append((scale, correction))
            scale *= math.exp(self.model.backoff[context])
            context = int(self.model.suffix[context])
        return terms, scale

    def _correct(self, context: int) -> Correction:
        """Computes the correction by the words listed behind a context."""
        model = self.model
        first, stop = int(model.begin[context]), int(model.begin[context + 1])
        words, suffix = model.word[first:stop].astype(np.int64), int(model.suffix[context])
        if len(words) < FEW:
            shorter = np.array([self._lookup.score(suffix, word)[0] for word in words.tolist()])
        else:
            shorter = model.score(np.full(len(words), suffix), words)[0]
        shorter += model.backoff[context]
        gains = np.exp(model.log_prob[first:stop]) - np.exp(shorter)
        counts = self._begin[words + 1] - self._begin[words]  # of the spellings of each
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self._order[np.repeat(self._begin[words], counts) + within]
        order = np.argsort(places)
        sums = np.concatenate([[0.0], np.cumsum(np.repeat(gains, counts)[order])])
        return Correction(memoryview(places[order]), memoryview(sums))


class Node:
    """The beginning of words: those whose spellings lie in [first, stop)."""

    __slots__ = ("_children", "_depth", "_lexicon", "first", "prob", "stop", "words")

    def __init__(self, lexicon: Lexicon, first: int, stop: int, depth: int):
        self._lexicon, self._depth = lexicon, depth  # letters of the beginning
        self.first, self.stop = first, stop
        self.prob = float(lexicon._sums[stop] - lexicon._sums[first])  # of its words, without context
        end = first
        while depth and end < stop and len(lexicon.spellings[end]) == depth:
            end += 1
        self.words = lexicon.words[first:end].tolist()  # those that end here
        self._children: dict[str, Node | None] = {}

    def child(self, letter: str) -> "Node | None":
        """The beginning with one letter more; None where no word has it."""
        if letter not in self._children:
            spellings, depth = self._lexicon.spellings, self._depth
            low = bisect.bisect_left(spellings, letter, self.first, self.stop, key=lambda word: word[depth : depth + 1])
            high = bisect.bisect_right(spellings, letter, low, self.stop, key=lambda word: word[depth : depth + 1])
            self._children[letter] = Node(self._lexicon, low, high, depth + 1) if low < high else None
        return self._children[letter]
