"""A pronouncing dictionary: the sounds of a word, and the words that have these sounds.

English spelling says little of its sounds, and a recogniser that has heard a few hours of speech cannot learn both.
With sounds as units it learns to hear, and a dictionary knows how to spell.

The sounds of a word are characters of the International Phonetic Alphabet. The file `pronunciations.tsv` holds a word
and its sounds a line, separated by a tab. A word may have several lines. Of words that sound alike, the first is
written unless a language model chooses another. Words that are not listed are pronounced by the rules of espeak-ng.
"""

import pathlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from conformer import system
from conformer.espeak import EspeakError, pronouncer
from conformer.text import read_lines

PRONUNCIATIONS_FILE = "pronunciations.tsv"

_MOST_REMEMBERED = 100_000  # sounds that are no word: a server may hear new ones for months

# Letters for sounds that are like no known word; other sounds are written as themselves.
_LETTERS = str.maketrans(
    {"æ": "a", "ɑ": "o", "ə": "a", "ɛ": "e", "ɜ": "er", "ɪ": "i", "ɔ": "o", "ʊ": "u", "ʌ": "u", "ɹ": "r", "ɡ": "g"}
    | {"ð": "th", "θ": "th", "ŋ": "ng", "ʃ": "sh", "ʒ": "s", "j": "y"}
)


class PronunciationError(ValueError):
    """A dictionary that cannot be read, or a word that cannot be pronounced; the message names it and the remedy."""


class Dictionary:
    """Words and their sounds, in the order of `entries`: pairs (word, sounds)."""

    def __init__(self, entries: Iterable[tuple[str, str]] = ()):
        self._sounds: dict[str, list[str]] = defaultdict(list)
        self._words: dict[str, list[str]] = defaultdict(list)
        self._nearest: dict[str, list[str]] = {}  # of sounds that are no word
        self._listed = list(dict.fromkeys(entries))
        for word, sounds in self._listed:
            self._add(word, sounds)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Dictionary":
        """Makes a dictionary of the words of texts, the most frequent first, by espeak-ng. Raises EspeakError."""
        counts = Counter(word for text in texts for word in text.split())
        dictionary = cls()
        dictionary.extend(word for word, _ in counts.most_common())
        return dictionary

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Dictionary":
        """Reads `pronunciations.tsv`. Raises PronunciationError for a line that is none of it."""
        path, entries = directory / PRONUNCIATIONS_FILE, []
        for number, line in read_lines(path, PronunciationError):
            word, _, sounds = line.partition("\t")
            if len(word.split()) != 1 or len(sounds.split()) != 1:
                raise PronunciationError(f"{path}:{number}: expected a word, a tab and its sounds, found {line!r}")
            entries.append((word, sounds))
        return cls(entries)

    def extend(self, words: Iterable[str]) -> None:
        """Lists further words, the least frequent last, as espeak-ng pronounces them. Raises EspeakError."""
        known = {word for word, _ in self._listed}
        new = [(word, pronouncer().pronounce(word)) for word in dict.fromkeys(words) if word not in known]
        self._listed += new
        for word, sounds in new:
            if word not in self._sounds:
                self._add(word, sounds)

    def save(self, directory: pathlib.Path) -> None:
        """Writes `pronunciations.tsv`: the words that are listed, not those that were only asked for."""
        lines = (f"{word}\t{sounds}\n" for word, sounds in self._listed)
        system.write_text(directory / PRONUNCIATIONS_FILE, "".join(lines))

    def sounds(self, word: str) -> list[str]:
        """The pronunciations of a word; none where it is not listed and espeak-ng is not installed.

        A word that is not listed is one of `words` from then on.
        """
        if word not in self._sounds:
            try:
                self._add(word, pronouncer().pronounce(word))
            except EspeakError:
                return []
        return self._sounds[word]

    def words(self, sounds: str) -> list[str]:
        """The words that sound so, or those that sound nearest: a recogniser mishears a sound more often than a word.

        Nearest are those with the fewest sounds to change, insert or drop, at most half; of several, those listed
        first. Where even they are too far, the sounds are written in letters.
        """
        if words := self._words.get(sounds):
            return words
        if sounds not in self._nearest:
            if len(self._nearest) >= _MOST_REMEMBERED:
                self._nearest.clear()
            nearest = _nearest_of(sounds, self._words.keys(), len(sounds) // 2)
            self._nearest[sounds] = self._words[nearest] if nearest else [sounds.translate(_LETTERS)]
        return self._nearest[sounds]

    def spell(self, text: str) -> str:
        """A text in sounds: the first pronunciation of each word. Raises PronunciationError for a word without."""
        spelled = []
        for word in text.split():
            if not (pronunciations := self.sounds(word)):
                raise PronunciationError(
                    f"{word!r} is not in {PRONUNCIATIONS_FILE}: add a line for it, or install espeak-ng "
                    "(pip install -e '.[demo]'), which pronounces every word"
                )
            spelled.append(pronunciations[0])
        return " ".join(spelled)

    def _add(self, word: str, sounds: str) -> None:
        self._sounds[word].append(sounds)
        self._words[sounds].append(word)
        self._nearest.clear()


def _nearest_of(sounds: str, known: Iterable[str], most: int) -> str | None:
    """Returns the first of those that differ least from `sounds`, in at most `most` places."""
    try:
        from rapidfuzz import process  # here, since exports with other units run without this package
        from rapidfuzz.distance import Levenshtein
    except ModuleNotFoundError:
        raise PronunciationError(
            "units of sounds are spelled with the package rapidfuzz: pip install rapidfuzz"
        ) from None
    found = process.extractOne(sounds, known, scorer=Levenshtein.distance, score_cutoff=most)
    return found and found[0]


Chooser = Callable[[Sequence[Sequence[str]]], list[str]]  # one word of each choice


def first_of_each(choices: Sequence[Sequence[str]]) -> list[str]:
    """Returns the first word of each choice: it is written where there is no language model to choose."""
    return [choice[0] for choice in choices]
