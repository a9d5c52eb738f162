"""The words of a language model, in alphabetical order: words that begin alike stand side by side."""

from collections.abc import Iterable

import numpy as np

from kernels.typing import Int

SENTENCE_START, SENTENCE_END, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIAL = (SENTENCE_START, SENTENCE_END, UNKNOWN)
START, END, UNK = range(3)  # their numbers; words follow


class LanguageModelError(ValueError):
    """A language model, or texts for one, that cannot be used; the message names file, line and remedy."""


class Vocabulary:
    """Words and their numbers: `<s>`, `</s>` and `<unk>`, then all others as `sorted` orders them."""

    def __init__(self, words: Iterable[str]):
        self.words = [*SPECIAL, *sorted(set(words).difference(SPECIAL))]
        self._ids = {word: id for id, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def ids(self, words: Iterable[str]) -> Int[np.ndarray, " words"]:
        """Returns the numbers of words, that of `<unk>` for words that are not listed."""
        return np.array([self._ids.get(word, UNK) for word in words], np.int64)
