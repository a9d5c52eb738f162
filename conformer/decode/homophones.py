"""Chooses among words that sound alike: the likeliest sequence of words under a language model."""

from collections.abc import Sequence

from conformer.language.lookup import Lookup
from conformer.language.ngrams import NgramModel

KEPT = 32  # contexts that are followed


class Homophones:
    """Chooses words that sound alike by an n-gram model: the sequence that maximises

    sum_i ln p(w_i | w_1 ... w_{i-1}),   each w_i one of the i-th choice.
    """

    def __init__(self, model: NgramModel):
        self._lookup, self._vocabulary, self._start = Lookup(model), model.vocabulary, model.start

    def __call__(self, choices: Sequence[Sequence[str]]) -> list[str]:
        """Returns one word of each choice. Of the words that lead to the same context, the best is kept."""
        best: dict[int, tuple[float, tuple | None]] = {
            self._start: (0.0, None)
        }  # words as nested pairs, the last first
        for choice in choices:
            ids = self._vocabulary.ids(choice).tolist()
            grown: dict[int, tuple[float, tuple | None]] = {}
            for context, (total, words) in best.items():
                for word, id in zip(choice, ids, strict=True):
                    log_prob, after = self._lookup.score(context, id)
                    if after not in grown or total + log_prob > grown[after][0]:
                        grown[after] = (total + log_prob, (word, words))
            best = dict(sorted(grown.items(), key=lambda item: -item[1][0])[:KEPT])
        words, chosen = next(iter(best.values()))[1], []
        while words is not None:
            word, words = words
            chosen.append(word)
        return chosen[::-1]
