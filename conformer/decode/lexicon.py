"""What a word language model says of words that are not complete yet: language-model look-ahead over a trie.

A beam search that hears of p(word | words before) only at a word's end has long dropped the words that only the model
favours. Hence the model is spread over the letters (Ortmanns, Ney and Eiden, 1996, "Language-model look-ahead for large
vocabulary speech recognition"), here with sums in place of maxima: behind the words h, letters l have

    P(l | h) = sum of p(w | h) over the words w that begin with l,

which makes a letter model of the word model, as exact at a word's end and never looking back. With back-off, the sum is
that of the shorter context, corrected for the words that the model lists behind h alone:

    P(l | h) = sum over listed w of (p(w | h) - backoff(h) p(w | h')) + backoff(h) P(l | h'),   h' = h without its first
"""

import math
import warnings

from conformer.decode.language_model import Context, LanguageModelError, NgramModel, train_ngram
from conformer.text import listed, strangers
from conformer.tokenizer import Tokenizer

SPELLING_ORDER = 5  # letters of an n-gram of the model of spelling
_LEAST = 1e-300  # of a sum of probabilities: differences of a model that is not interpolated may cancel to nothing


class Lexicon:
    """The words of a model that a tokenizer can spell, as a trie. Memory grows to the model's size: for small ones.

    Words are taken in the spelling of the tokenizer's training texts. Warns of those that cannot be spelled. Raises
    LanguageModelError when none can be.
    """

    def __init__(self, model: NgramModel, tokenizer: Tokenizer):
        self.model = model = model.spelled(tokenizer.normalise)
        words = sorted(word for word in model.words if tokenizer.alphabet.issuperset(word))
        if not words:
            raise LanguageModelError(
                "the tokenizer can spell no word of the language model: is it of another language?"
            )
        if left_out := model.words.difference(words):
            warnings.warn(
                f"{len(left_out)} of {len(model.words)} words of the language model are left out: they hold characters "
                f"that the tokenizer has not: {listed(strangers(left_out, tokenizer.alphabet))}",
                stacklevel=2,
            )
        self.root = Node()
        for word in words:
            prob = math.exp(model.score((), word)[0])
            for node in self._path(word, grow=True):
                node.prob += prob
            node.word = word
        self.spelling = train_ngram((" ".join(word) for word in words), SPELLING_ORDER)
        self._corrections: dict[Context, dict[Node, float]] = {}
        self._terms: dict[Context, tuple[list[tuple[float, dict[Node, float]]], float]] = {}
        self._spelled: dict[tuple[Context, str], tuple[float, Context]] = {}

    def prob(self, context: Context, node: "Node") -> float:
        """P(letters of the node | context)."""
        if (terms := self._terms.get(context)) is None:
            terms = self._terms[context] = self._expand(context)
        corrections, scale = terms
        total = scale * node.prob
        for factor, correction in corrections:
            total += factor * correction.get(node, 0.0)
        return max(total, _LEAST)

    def spell(self, letters: Context, letter: str) -> tuple[float, Context]:
        """As `spelling.score`, from memory."""
        if (known := self._spelled.get((letters, letter))) is None:
            known = self._spelled[letters, letter] = self.spelling.score(letters, letter)
        return known

    def _expand(self, context: Context) -> "tuple[list[tuple[float, dict[Node, float]]], float]":
        """The corrections that the sums behind a context need, with their factors, and the factor of the sums."""
        terms, scale = [], 1.0
        while context:
            if (correction := self._corrections.get(context)) is None:
                correction = self._corrections[context] = self._correct(context)
            if correction:
                terms.append((scale, correction))
            scale *= math.exp(self.model.backoff(context))
            context = context[1:]
        return terms, scale

    def _correct(self, context: Context) -> "dict[Node, float]":
        """What the words listed behind a context add to the sums of its shorter one."""
        corrections: dict[Node, float] = {}
        backoff = self.model.backoff(context)
        for word in self.model.followers(context):
            shorter = backoff + self.model.score(context[1:], word)[0]
            difference = math.exp(self.model.score(context, word)[0]) - math.exp(shorter)
            for node in self._path(word):
                corrections[node] = corrections.get(node, 0.0) + difference
        return corrections

    def _path(self, word: str, grow: bool = False) -> "list[Node]":
        """The nodes of a word, letter by letter; none if it is not among the words."""
        node, path = self.root, []
        for letter in word:
            child = node.children.get(letter)
            if child is None:
                if not grow:
                    return []
                child = node.children[letter] = Node()
            path.append(node := child)
        return path


class Node:
    """The beginning of words."""

    __slots__ = ("children", "prob", "word")

    def __init__(self):
        self.children: dict[str, Node] = {}
        self.prob = 0.0  # of its words, without context
        self.word: str | None = None  # the word that ends here
