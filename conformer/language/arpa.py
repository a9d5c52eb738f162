"""ARPA files, the format that all tools for n-gram models read and write: logarithms are decimal there."""

import math
import pathlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from conformer import system
from conformer.language.ngrams import NEVER, Level, NgramModel, join
from conformer.language.vocabulary import SPECIAL, UNKNOWN, LanguageModelError, Vocabulary
from conformer.text import read_lines

LN10 = math.log(10)
_BINARY_BYTES = 4096  # among which a file that is no text has a zero
_LONGEST_ERROR = 300  # characters; a line of a broken file may be long
_LINES = 100_000  # written at a time


def write_arpa(model: NgramModel, path: str | pathlib.Path) -> None:
    """Writes an ARPA file."""
    with system.replacing(pathlib.Path(path)) as temporary, temporary.open("w") as file:
        counts = np.diff(model.starts[1:])
        file.write("\\data\\\n" + "".join(f"ngram {n}={count}\n" for n, count in enumerate(counts, 1)))
        for n, (first, stop) in enumerate(zip(model.starts[1:], model.starts[2:], strict=False), 1):
            file.write(f"\n\\{n}-grams:\n")
            for start in range(first, stop, _LINES):
                file.writelines(_lines(model, np.arange(start, min(start + _LINES, stop)), n))
        file.write("\n\\end\\\n")


def _lines(model: NgramModel, nodes: np.ndarray, n: int) -> Iterator[str]:
    log_probs = (model.log_probs(nodes) / LN10).tolist()
    backoffs = (model.backoffs(nodes) / LN10).tolist() if n < model.order else [0.0] * len(nodes)
    columns = []
    for _ in range(n):
        columns.append([model.vocabulary.words[id] for id in model.word[nodes].tolist()])
        nodes = model.parents(nodes)
    for log_prob, backoff, *words in zip(log_probs, backoffs, *reversed(columns), strict=True):
        yield f"{log_prob:.7f}\t{' '.join(words)}" + (f"\t{backoff:.7f}\n" if backoff else "\n")


def read_arpa(path: str | pathlib.Path) -> NgramModel:
    """Reads an ARPA file of any order. Without `<unk>`, unknown words get a probability of 1e-99.

    Raises LanguageModelError, with the line, for a file that is missing, broken or cut off.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            if b"\0" in file.read(_BINARY_BYTES):
                raise LanguageModelError(
                    f"{path} is not UTF-8 text: decompress it, or convert a binary model back to ARPA"
                )
        return _Reader(path).read(read_lines(path, LanguageModelError))
    except OSError as error:
        raise LanguageModelError(f"{path} cannot be read ({error.strerror}): name an ARPA file") from None


class _Reader:
    """Reads the lines of one file."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._number = 0
        self._counts: dict[int, int] = {}  # n -> n-grams promised by the header
        self._ids: dict[str, int] = {}  # in the order of the file
        self._words: list[array] = []  # for each length the ids of its n-grams, one behind the other
        self._values: list[array] = []  # their logarithms and back-offs

    def read(self, lines: Iterable[tuple[int, str]]) -> NgramModel:
        section = None  # None before the header, 0 in it, n among the n-grams
        for self._number, line in lines:
            line = line.strip()
            if line == "\\data\\":
                section = 0
            elif section is None or not line:
                continue
            elif line == "\\end\\":
                break
            elif line.startswith("\\") and line.endswith("-grams:"):
                section += 1
                if line != f"\\{section}-grams:" or section not in self._counts:
                    raise self._error(f"{line!r} is not announced by the header, or out of order")
            elif section == 0:
                self._count(line)
            else:
                self._entry(line, section)
        else:
            raise self._error("the file ends without \\end\\" if section is not None else "there is no \\data\\ line")
        if missing := [word for word in SPECIAL if word not in self._ids and word != UNKNOWN]:
            raise self._error(f"{missing[0]} is not among the 1-grams")
        if UNKNOWN not in self._ids:
            self._ids[UNKNOWN] = len(self._ids)
            self._words[0].append(self._ids[UNKNOWN])
            self._values[0].extend([NEVER, 0.0])
            self._counts[1] += 1
        return self._model()

    def _model(self) -> NgramModel:
        """Puts the n-grams in order. Those that others begin with are added where the file does not list them."""
        vocabulary = Vocabulary(self._ids)
        ids = vocabulary.ids(self._ids)
        grams = [ids[np.array(words, np.int64)].reshape(-1, n) for n, words in enumerate(self._words, 1)]
        values = [np.array(values).reshape(-1, 2) for values in self._values]
        keys: list[np.ndarray] = []  # parent and word of each n-gram, in order
        levels: list[Level] = []
        while (n := len(levels)) < len(grams):
            gram, value = grams[n], values[n]
            parent, listed = np.zeros(len(gram), np.int64), np.ones(len(gram), bool)
            for known, word in zip(keys, gram.T[:-1], strict=True):
                key = join(parent, word)
                parent = np.searchsorted(known, key)
                listed &= known[np.minimum(parent, len(known) - 1)] == key
            if not listed.all():
                begun = np.unique(gram[~listed, :-1], axis=0)
                grams[n - 1] = np.concatenate([grams[n - 1], begun])
                values[n - 1] = np.concatenate([values[n - 1], np.full((len(begun), 2), (np.nan, 0.0))])
                self._counts[n] += len(begun)
                del keys[-1], levels[-1]
                continue
            key = join(parent, gram[:, -1])
            order = np.argsort(key)
            keys.append(key[order])
            if (found := len(np.unique(key))) != (count := self._counts[n + 1]):
                raise self._error(f"the header promises {count} {n + 1}-grams, but there are {found} different ones")
            levels.append(Level(parent[order], gram[order, -1], *value[order].T))
        model = NgramModel.of(vocabulary, levels)
        log_prob = model.log_prob = model.log_probs(np.arange(model.starts[-1]))  # longer ones ask for shorter ones
        for first, stop in zip(model.starts[1:], model.starts[2:], strict=False):
            nodes = first + np.flatnonzero(np.isnan(log_prob[first:stop]))
            parents = model.parents(nodes)
            shorter = model.score(model.suffix[parents], model.word[nodes])[0]
            log_prob[nodes] = model.backoffs(parents) + shorter
        return model

    def _count(self, line: str) -> None:
        n, _, count = line.removeprefix("ngram ").partition("=")
        try:
            self._counts[int(n)] = int(count)
        except ValueError:
            raise self._error(f"expected 'ngram N=COUNT', found {line!r}") from None
        if int(n) != len(self._counts):
            raise self._error(f"{line!r} is out of order")
        self._words.append(array("q"))
        self._values.append(array("d"))

    def _entry(self, line: str, n: int) -> None:
        fields = line.split()
        if len(fields) not in (n + 1, n + 2):
            raise self._error(f"expected a logarithm, {n} words and perhaps a back-off, found {line!r}")
        try:
            log_prob, backoff = float(fields[0]), float(fields[n + 1]) if len(fields) == n + 2 else 0.0
        except ValueError:
            raise self._error(f"the numbers of {line!r} cannot be read") from None
        if not (math.isfinite(log_prob + backoff) and log_prob <= 0):
            raise self._error(f"{line!r} holds no logarithm of a probability")
        words = [UNKNOWN if word == "<UNK>" else word for word in fields[1 : n + 1]]
        if n == 1:
            self._ids.setdefault(words[0], len(self._ids))
        elif unlisted := [word for word in words if word not in self._ids]:
            raise self._error(f"{unlisted[0]!r} is not among the 1-grams")
        self._words[n - 1].extend(self._ids[word] for word in words)
        self._values[n - 1].extend((log_prob * LN10, backoff * LN10))

    def _error(self, what: str) -> LanguageModelError:
        what = what if len(what) <= _LONGEST_ERROR else f"{what[:_LONGEST_ERROR]}..."
        return LanguageModelError(f"{self._path}:{self._number}: {what}: restore the file or write it again")
