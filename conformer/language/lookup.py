"""Looks up an n-gram model one word at a time, as a beam search does.

For single words, bisection in plain Python takes a hundredth of the time of the array operations of `NgramModel.score`,
whose results are the same.
"""

import bisect

from conformer.language.ngrams import ROOT, NgramModel


class Lookup:
    """Probabilities and contexts of single words. The model's arrays stay where they are, in a file or in memory."""

    def __init__(self, model: NgramModel):
        self._model = model
        self._word, self._begin, self._suffix, self._trimmed = (
            memoryview(values) for values in (model.word, model.begin, model.suffix, model.trimmed)
        )
        self._num_contexts = len(model.suffix)

    def child(self, context: int, word: int) -> int:
        """The node of a context and one word more; -1 where it is not listed."""
        if context == ROOT:
            return 1 + word
        stop = self._begin[context + 1]
        node = bisect.bisect_left(self._word, word, self._begin[context], stop)
        return node if node < stop and self._word[node] == word else -1

    def score(self, context: int, word: int) -> tuple[float, int]:
        """ln p(word | context), and the context behind the word."""
        total = 0.0
        while (node := self.child(context, word)) < 0:
            total += float(self._model.backoff[context])
            context = self._suffix[context]
        total += float(self._model.log_prob[node])
        if node >= self._num_contexts:  # no context: what follows sees one word less
            node = self._shorter(context, word)
        return total, self._trimmed[node]

    def _shorter(self, context: int, word: int) -> int:
        """The longest listed end of a context and a word, shorter than both together."""
        node = -1 if self._model.order > 1 else ROOT
        while node < 0:
            context = self._suffix[context]
            node = self.child(context, word)
        return node
