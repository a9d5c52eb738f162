"""Reads texts for language models as numbers: one array for the sentences of all files."""

import bz2
import gzip
import lzma
import pathlib
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, pairwise

import numpy as np

from conformer.language.vocabulary import END, SPECIAL, START, UNK, LanguageModelError, Vocabulary
from conformer.text import normalise, read_lines
from kernels.typing import Int

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_PATTERNS = ("*.txt", *(f"*.txt{suffix}" for suffix in OPENERS))
OVERLAP = 8  # words in a row that two texts share by chance only if they are a stock phrase
_SENTENCES_A_REPORT = 500_000


def text_files(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
    """Returns the named files, and of a folder all that end in .txt, .txt.gz, .txt.xz or .txt.bz2, in order."""
    files = []
    for path in map(pathlib.Path, paths):
        found = sorted(file for pattern in _PATTERNS for file in path.rglob(pattern)) if path.is_dir() else [path]
        if not found:
            raise LanguageModelError(f"{path} holds no text: name files, or a folder of .txt files (.gz, .xz or .bz2)")
        files += found
    return files


def sentences(files: Iterable[pathlib.Path], level: str, say: Callable[[str], object]) -> Iterator[str]:
    """The lines of text files, decompressed, in the spelling of `normalise`.

    Raises LanguageModelError for a file that is damaged, and where none of them holds a word.
    """
    files = list(files)
    read, words = 0, False
    for file in files:
        try:
            for _, line in read_lines(file, LanguageModelError, OPENERS.get(file.suffix, open)):
                text = normalise(line, level)
                words = words or bool(text)
                yield text
                read += 1
                if read % _SENTENCES_A_REPORT == 0:
                    say(f"{read:,} sentences read")
        except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk: it names itself
                raise
            raise LanguageModelError(f"{file} is damaged ({error}): fetch it again") from None
    if files and not words:
        raise LanguageModelError(f"{', '.join(map(str, files))}: no word in it: name files that hold text")


def numbers(texts: Iterable[str], limit: int | None = None) -> tuple[Vocabulary, Int[np.ndarray, " words"]]:
    """The words of texts, and the texts as their numbers, each between those of `<s>` and `</s>`.

    Args:
        limit: words to list, the most frequent; the others become `<unk>`.

    Raises:
        LanguageModelError: when there is no text, or one holds `<s>`, `</s>` or `<unk>`.
    """
    seen: defaultdict[str, int] = defaultdict(count().__next__)
    for word in SPECIAL:
        seen[word]
    ids = array("i")
    for text in texts:
        if words := text.split():
            first = len(ids)
            ids.append(START)
            ids.extend(map(seen.__getitem__, words))
            if min(ids[first + 1 :]) <= UNK:
                raise LanguageModelError(f"text {text!r} holds the reserved word {_reserved(words)}: remove it")
            ids.append(END)
    if not ids:
        raise LanguageModelError("there are no texts to train a language model on")
    found, words = np.frombuffer(ids, np.int32), list(seen)
    if limit is not None and limit < len(words) - len(SPECIAL):
        counts = np.bincount(found, minlength=len(words))[len(SPECIAL) :]
        order = np.argsort(-counts, kind="stable")[:limit]
        words = [words[len(SPECIAL) + place] for place in order]
    vocabulary = Vocabulary(words)
    return vocabulary, vocabulary.ids(seen).astype(np.int32)[found]


class Overlap:
    """Finds texts to learn from that share `OVERLAP` words in a row, or all their words, with texts held out.

    `found` counts them for each split, once `watched` has been read.
    """

    def __init__(self, held_out: Mapping[str, Iterable[str]]):
        self.found: Counter[str] = Counter()
        self._splits: dict[str, set[str]] = {}  # of each row of words
        self._begins: set[tuple[str, str]] = set()  # first two words of the rows: few texts hold one
        for split, texts in held_out.items():
            for text in texts:
                for row in _rows(text.split()):
                    self._splits.setdefault(" ".join(row), set()).add(split)
                    self._begins.add((row[0], row[1]))

    def watched(self, texts: Iterable[str]) -> Iterator[str]:
        """Yields the same texts, and counts those that overlap."""
        for text in texts:
            words = text.split()
            if not self._begins.isdisjoint(pairwise(words)):
                splits = [self._splits.get(" ".join(row), ()) for row in _rows(words)]
                self.found.update(set().union(*splits))
            yield text


def _rows(words: list[str]) -> Iterator[list[str]]:
    """Yields every OVERLAP words in a row; of a shorter text of two words or more, all."""
    if len(words) > 1:
        for start in range(max(1, len(words) - OVERLAP + 1)):
            yield words[start : start + OVERLAP]


def _reserved(words: list[str]) -> str:
    return min(set(words) & set(SPECIAL))
