"""Back-off n-gram models as arrays, which are looked up for many words at once.

A word w behind the words h has the probability of the longest n-gram that the model lists (Katz, 1987):

    p(w | h) = p(h w) if it is listed, else backoff(h) p(w | h without its first word),   backoff(h) = 1 if h is not

The n-grams are the nodes of a tree. Node 0 is the empty context, node 1 + w the 1-gram of word w, and the nodes of
each length follow those of the one before. A node's children are the n-grams that add one word to it; they stand side
by side, in the order of that word. A context is the number of its node, so a search holds states as integers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from conformer.language.codes import Codes
from conformer.language.vocabulary import END, START, LanguageModelError, Vocabulary
from kernels.typing import Float, Int

ROOT = 0  # the context without words
NEVER = -99 * np.log(10)  # as ARPA files write a probability of 0


_BITS = 32  # of a word, below the place of what precedes it


def join(parent: np.ndarray, word: np.ndarray) -> Int[np.ndarray, "_"]:
    """One number for each n-gram: they are ordered as the n-grams are."""
    keys = parent.astype(np.int64)
    keys <<= _BITS
    keys |= word
    return keys


def split(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parent and word again."""
    return keys >> _BITS, keys & ((1 << _BITS) - 1)


class Level(NamedTuple):
    """The n-grams of one length, in the order of parent and word. Logarithms are natural."""

    parent: Int[np.ndarray, "_"]  # place of the n-gram without its last word among those one shorter
    word: Int[np.ndarray, "_"]  # its last word
    log_prob: Float[np.ndarray, "_"]
    backoff: Float[np.ndarray, "_"]  # 0 where there is none


class NgramModel:
    """Probabilities and back-offs of n-grams, in natural logarithms.

    Args:
        vocabulary: each of its words is a 1-gram.
        starts: first node of each length, from 0 to `order`, and the number of nodes.
        word: last word of each node.
        log_prob: of each node.
        backoff: of each context, the nodes shorter than `order`.
        begin: first child of each context, and the number of nodes.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        starts: Sequence[int],
        word: np.ndarray,
        log_prob: np.ndarray | Codes,
        backoff: np.ndarray | Codes,
        begin: np.ndarray,
    ):
        self.vocabulary = vocabulary
        self.starts = starts
        self.order = len(starts) - 2
        self.word, self.log_prob, self.backoff, self.begin = word, log_prob, backoff, begin
        self.suffix = self._suffixes()
        self.trimmed = self._trimmed()
        self.start = int(self.trimmed[1 + START]) if self.order > 1 else ROOT  # the context at the start of a sentence

    @classmethod
    def of(cls, vocabulary: Vocabulary, levels: Sequence[Level]) -> "NgramModel":
        """Makes a model of its n-grams, those of one word first."""
        starts = np.cumsum([0, 1, *(len(level.word) for level in levels)])
        parents = np.concatenate([start + level.parent for start, level in zip(starts, levels, strict=False)])
        counts = np.bincount(parents, minlength=starts[-2])
        return cls(
            vocabulary,
            starts.tolist(),
            np.concatenate([[0], *(level.word for level in levels)]).astype(np.int32),
            np.concatenate([[0.0], *(level.log_prob for level in levels)]),
            np.concatenate([[0.0], *(level.backoff for level in levels[:-1])]),
            np.concatenate([[1], 1 + np.cumsum(counts)]).astype(np.int32),
        )

    def levels(self) -> list[Level]:
        """Returns the n-grams of the model, as `of` takes them."""
        found = []
        for first, stop in zip(self.starts[1:], self.starts[2:], strict=False):
            nodes = np.arange(first, stop)
            backoff = self.backoffs(nodes) if stop <= len(self.suffix) else np.zeros(len(nodes))
            parent = self.parents(nodes)
            parent -= self.starts[len(found)]
            found.append(Level(parent, self.word[first:stop].astype(np.int64), self.log_probs(nodes), backoff))
        return found

    @property
    def words(self) -> list[str]:
        """The listed words, without `<s>`, `</s>` and `<unk>`."""
        return self.vocabulary.words[3:]

    def spelled(self, spell: Callable[[str], str]) -> "NgramModel":
        """The model with each word in another spelling. Raises LanguageModelError where two would become one."""
        words = self.vocabulary.words
        spelling = [*words[:3], *map(spell, words[3:])]
        if spelling == words:
            return self
        source: dict[str, str] = {}
        for word, other in zip(words, spelling, strict=True):
            if source.setdefault(other, word) != word:
                raise LanguageModelError(
                    f"the language model lists {source[other]!r} and {word!r}, to a recogniser both {other!r}: "
                    "train it on texts that are spelled so (lm.py --text does that)"
                )
        vocabulary = Vocabulary(spelling)
        ids, levels, place = vocabulary.ids(spelling), [], np.zeros(1, np.int64)
        for level in self.levels():
            parent, word = place[level.parent], ids[level.word]
            order = np.lexsort((word, parent))
            levels.append(Level(parent[order], word[order], level.log_prob[order], level.backoff[order]))
            place = np.argsort(order)
        return NgramModel.of(vocabulary, levels)

    def log_probs(self, nodes: Int[np.ndarray, " nodes"]) -> Float[np.ndarray, " nodes"]:
        """ln p of the last word of each."""
        return self.log_prob[nodes]

    def backoffs(self, contexts: Int[np.ndarray, " nodes"]) -> Float[np.ndarray, " nodes"]:
        """ln of the factor of the shorter context's probabilities, for words that are not listed behind these."""
        return self.backoff[contexts]

    def parents(self, nodes: Int[np.ndarray, " nodes"]) -> Int[np.ndarray, " nodes"]:
        """Each without its last word."""
        return np.searchsorted(self.begin, nodes, side="right") - 1

    def child(self, contexts: np.ndarray, words: np.ndarray) -> Int[np.ndarray, " queries"]:
        """The node of each context and one word more; -1 where it is not listed."""
        root = contexts == ROOT
        low = np.where(root, 1 + words, self.begin[contexts]).astype(np.int64)
        stop = np.where(root, 2 + words, self.begin[contexts + 1])
        high = np.where(root, low, stop)
        while (open := low < high).any():  # bisection, all at once
            middle = (low + high) >> 1
            less = open & (self.word[np.where(open, middle, 0)] < words)
            low, high = np.where(less, middle + 1, low), np.where(open & ~less, middle, high)
        listed = low < stop
        listed[listed] = self.word[low[listed]] == words[listed]
        return np.where(listed, low, -1)

    def score(self, contexts: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ln p(word | context) of each pair, and the context behind the word."""
        contexts, words = np.array(contexts, np.int64), np.asarray(words, np.int64)
        total = np.zeros(len(words))
        node = self.child(contexts, words)
        while len(missing := np.flatnonzero(node < 0)):
            total[missing] += self.backoffs(contexts[missing])
            contexts[missing] = self.suffix[contexts[missing]]
            node[missing] = self.child(contexts[missing], words[missing])
        total += self.log_probs(node)
        longest = np.flatnonzero(node >= len(self.suffix))  # no context: what follows sees one word less
        node[longest] = self._shorter(contexts[longest], words[longest])
        return total, self.trimmed[node]

    def context(self, words: Iterable[str]) -> int:
        """The context behind words at the start of no sentence."""
        state = np.zeros(1, np.int64)
        for id in self.vocabulary.ids(words):
            state = self.score(state, np.array([id]))[1]
        return int(state[0])

    def sentence(self, text: str) -> float:
        """ln p of a whole sentence, its end included."""
        total, state = 0.0, np.array([self.start])
        for id in (*self.vocabulary.ids(text.split()), END):
            log_prob, state = self.score(state, np.array([id]))
            total += float(log_prob[0])
        return total

    def _shorter(self, contexts: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The longest listed end of each context and word, shorter than both together."""
        node = np.full(len(words), -1 if self.order > 1 else ROOT)
        contexts = contexts.copy()
        while len(missing := np.flatnonzero(node < 0)):
            contexts[missing] = self.suffix[contexts[missing]]
            node[missing] = self.child(contexts[missing], words[missing])
        return node

    def _suffixes(self) -> np.ndarray:
        """Each context without its first word; the longest end of that which is listed."""
        suffix = self.suffix = np.zeros(self.starts[-2], np.int32)  # it is read while it grows
        for n, (first, stop) in enumerate(zip(self.starts[2:-2], self.starts[3:-1], strict=True), 2):
            words = self.word[first:stop].astype(np.int64)
            suffix[first:stop] = 1 + words if n == 2 else self._shorter(self.parents(np.arange(first, stop)), words)
        return suffix

    def _trimmed(self) -> np.ndarray:
        """Each context without the first words that no listed n-gram and no back-off needs."""
        trimmed = np.arange(len(self.suffix), dtype=np.int32)
        needless = (self.begin[1:] == self.begin[:-1]) & (self.backoffs(trimmed) == 0)
        for first, stop in zip(self.starts[1:-2], self.starts[2:-1], strict=True):
            nodes = first + np.flatnonzero(needless[first:stop])
            trimmed[nodes] = trimmed[self.suffix[nodes]]
        return trimmed


class Following:
    """Looks up ln p of some words behind a context, and the contexts that they lead to; remembers the results."""

    def __init__(self, model: NgramModel, ids: Int[np.ndarray, " words"]):
        self._model, self._ids = model, ids
        self._known: dict[int, tuple[list[float], list[int]]] = {}

    def __call__(self, context: int) -> tuple[list[float], list[int]]:
        if (known := self._known.get(context)) is None:
            log_probs, contexts = self._model.score(np.full(len(self._ids), context), self._ids)
            known = self._known[context] = log_probs.tolist(), contexts.tolist()
        return known
