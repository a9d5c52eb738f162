"""Back-off n-gram language models: ARPA files, training, perplexity.

A word w behind the words h has the probability of the longest n-gram that the model lists (Katz, 1987):

    p(w | h) = p(h w) if it is listed, else backoff(h) p(w | h without its first word),   backoff(h) = 1 if h is not

`train_ngram` uses interpolated Kneser-Ney smoothing with one discount an order (Kneser and Ney, 1995; Chen and Goodman,
1999, "An empirical study of smoothing techniques for language modeling", section 4.1). With c the counts, for shorter
n-grams replaced by the number of distinct words seen before them, n_i the number of n-grams of count i, and V words,

    p(w | h) = (c(h w) - D) / sum_v c(h v) + backoff(h) p(w | h without its first word),   p(w | nothing) = 1 / V
    backoff(h) = D |{v: c(h v) > 0}| / sum_v c(h v),   D = n_1 / (n_1 + 2 n_2)
"""

import functools
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from conformer import system
from conformer.text import read_lines

SENTENCE_START, SENTENCE_END, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIAL = (SENTENCE_START, SENTENCE_END, UNKNOWN)
LN10 = math.log(10)  # ARPA files hold decimal logarithms, all else natural ones
NEVER = -99 * LN10  # as ARPA files write a probability of 0
_BINARY_BYTES = 4096  # among which a file that is no text has a zero
_LONGEST_ERROR = 300  # characters; a line of a broken file may be long
FALLBACK_DISCOUNT = 0.5  # of texts too few for D: no n-gram of count 1, or none of count 2

Context = tuple[str, ...]


class LanguageModelError(ValueError):
    """A language model, or texts for one, that cannot be used; the message names file, line and remedy."""


class NgramModel:
    """Natural logarithms of probability and back-off of each n-gram, held in a dict: for small models.

    `<unk>` stands for every word that is not listed. Raises LanguageModelError without `<s>`, `</s>` or `<unk>`.
    """

    def __init__(self, order: int, ngrams: dict[Context, tuple[float, float]]):
        if missing := [word for word in SPECIAL if (word,) not in ngrams]:
            raise LanguageModelError(f"{missing[0]} is not among the 1-grams")
        self.order = order
        self._ngrams = ngrams

    @property
    def start(self) -> Context:
        """The state at the start of a sentence."""
        return (SENTENCE_START,)[: self.order - 1]

    @property
    def words(self) -> set[str]:
        """The vocabulary, without `<s>`, `</s>` and `<unk>`."""
        return {ngram[0] for ngram in self._ngrams if len(ngram) == 1}.difference(SPECIAL)

    def score(self, state: Context, word: str) -> tuple[float, Context]:
        """ln p(word | state), and the state behind the word: at most order - 1 words. `</s>` ends a sentence."""
        if (word,) not in self._ngrams:
            word = UNKNOWN
        log_prob, context = 0.0, state
        while (found := self._ngrams.get((*context, word))) is None:
            log_prob += self.backoff(context)
            context = context[1:]
        kept = (*state, word)
        return log_prob + found[0], kept[max(0, len(kept) - self.order + 1) :]

    def backoff(self, context: Context) -> float:
        """ln of the factor of the shorter context's probabilities where this one lists none; 0 if it lists nothing."""
        return self._ngrams.get(context, (0.0, 0.0))[1]

    def trim(self, context: Context) -> Context:
        """The part of a context that matters to probabilities: without the first words that no listed n-gram needs."""
        while context and context not in self._ngrams and context not in self._followers:
            context = context[1:]
        return context

    def followers(self, context: Context) -> list[str]:
        """The words listed behind a context."""
        return self._followers.get(context, [])

    @functools.cached_property
    def _followers(self) -> dict[Context, list[str]]:
        followers: dict[Context, list[str]] = {}
        for *context, word in self._ngrams:
            followers.setdefault(tuple(context), []).append(word)
        return followers

    def sentence(self, text: str) -> float:
        """ln p of a whole sentence, its end included."""
        total, state = 0.0, self.start
        for word in (*text.split(), SENTENCE_END):
            log_prob, state = self.score(state, word)
            total += log_prob
        return total

    def write_arpa(self, path: str | pathlib.Path) -> None:
        """Writes an ARPA file, which other tools read too."""
        by_order: list[list[str]] = [[] for _ in range(self.order + 1)]
        for ngram, (log_prob, backoff) in sorted(self._ngrams.items()):
            line = f"{log_prob / LN10:.7f}\t{' '.join(ngram)}"
            by_order[len(ngram)].append(f"{line}\t{backoff / LN10:.7f}" if backoff else line)
        lines = ["\\data\\", *(f"ngram {n}={len(by_order[n])}" for n in range(1, self.order + 1))]
        for n in range(1, self.order + 1):
            lines += ["", f"\\{n}-grams:", *by_order[n]]
        system.write_text(pathlib.Path(path), "\n".join([*lines, "", "\\end\\", ""]))

    @classmethod
    def from_arpa(cls, path: str | pathlib.Path) -> "NgramModel":
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
            return _Arpa(path).read(read_lines(path, LanguageModelError))
        except OSError as error:
            raise LanguageModelError(f"{path} cannot be read ({error.strerror}): name an ARPA file") from None

    def spelled(self, spell: Callable[[str], str]) -> "NgramModel":
        """The model with each word in another spelling. Raises LanguageModelError where two would become one."""
        spelling = {word: spell(word) for word in self.words}
        if all(word == other for word, other in spelling.items()):
            return self
        source: dict[str, str] = {}
        for word, other in spelling.items():
            if source.setdefault(other, word) != word:
                raise LanguageModelError(
                    f"the language model lists {source[other]!r} and {word!r}, to a recogniser both {other!r}: "
                    "train it on texts that are spelled so (lm.py --text does that)"
                )
        ngrams = {tuple(spelling.get(word, word) for word in ngram): value for ngram, value in self._ngrams.items()}
        return NgramModel(self.order, ngrams)


class _Arpa:
    """Reads the lines of one file."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._number = 0
        self._counts: dict[int, int] = {}  # n -> n-grams promised by the header
        self._ngrams: dict[Context, tuple[float, float]] = {}
        self._words: dict[str, str] = {}  # one object a word, however many n-grams hold it

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
        found = Counter(map(len, self._ngrams))
        for n, count in self._counts.items():
            if found[n] != count:
                raise self._error(f"the header promises {count} {n}-grams, but there are {found[n]} different ones")
        self._ngrams.setdefault((UNKNOWN,), (NEVER, 0.0))
        try:
            return NgramModel(max(self._counts, default=0), self._ngrams)
        except LanguageModelError as error:
            raise self._error(str(error)) from None

    def _count(self, line: str) -> None:
        n, _, count = line.removeprefix("ngram ").partition("=")
        try:
            self._counts[int(n)] = int(count)
        except ValueError:
            raise self._error(f"expected 'ngram N=COUNT', found {line!r}") from None
        if int(n) != len(self._counts):
            raise self._error(f"{line!r} is out of order")

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
            self._words[words[0]] = words[0]
        elif unlisted := [word for word in words if word not in self._words]:
            raise self._error(f"{unlisted[0]!r} is not among the 1-grams")
        self._ngrams[tuple(self._words[word] for word in words)] = (log_prob * LN10, backoff * LN10)

    def _error(self, what: str) -> LanguageModelError:
        what = what if len(what) <= _LONGEST_ERROR else f"{what[:_LONGEST_ERROR]}..."
        return LanguageModelError(f"{self._path}:{self._number}: {what}: restore the file or write it again")


def train_ngram(texts: Iterable[str], order: int = 3) -> NgramModel:
    """Trains on sentences of words, or of tokens: `" ".join(tokenizer.symbols[id] for id in tokenizer.encode(text))`.

    Probabilities of the words, `</s>` and `<unk>` sum to 1 in every context. Raises LanguageModelError when there is no
    text, when one holds `<s>`, `</s>` or `<unk>`, and for an order below 1.
    """
    if order < 1:
        raise LanguageModelError(f"order={order} must be at least 1")
    counts: list[Counter[Context]] = [Counter() for _ in range(order + 1)]
    for text in texts:
        words = text.split()
        if reserved := set(words) & set(SPECIAL):
            raise LanguageModelError(f"text {text!r} holds the reserved word {min(reserved)}: remove it")
        words = [SENTENCE_START, *words, SENTENCE_END] if words else []
        for n in range(1, order + 1):
            counts[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    if not counts[1]:
        raise LanguageModelError("there are no texts to train a language model on")
    del counts[1][SENTENCE_START,]
    for n in range(1, order):
        before = Counter(longer[1:] for longer in counts[n + 1])
        # Nothing can come before a sentence: there, the counts are those of the texts.
        counts[n] = Counter({g: c if g[0] == SENTENCE_START else before[g] for g, c in counts[n].items()})

    probs: dict[Context, float] = {}
    backoffs: dict[Context, float] = {}
    uniform = 1 / (len(counts[1]) + 1)  # `<unk>` is one of them
    for n in range(1, order + 1):
        counts_of_counts = Counter(counts[n].values())
        once, twice = counts_of_counts[1], counts_of_counts[2]
        discount = once / (once + 2 * twice) if once and twice else FALLBACK_DISCOUNT
        totals: Counter[Context] = Counter()
        successors: Counter[Context] = Counter()
        for ngram, count in counts[n].items():
            totals[ngram[:-1]] += count
            successors[ngram[:-1]] += 1
        for context, total in totals.items():
            backoffs[context] = discount * successors[context] / total
        for ngram, count in counts[n].items():
            shorter = probs[ngram[1:]] if n > 1 else uniform
            probs[ngram] = (count - discount) / totals[ngram[:-1]] + backoffs[ngram[:-1]] * shorter
    probs[UNKNOWN,] = backoffs[()] * uniform
    ngrams = {ngram: (math.log(prob), math.log(backoffs.get(ngram, 1.0))) for ngram, prob in probs.items()}
    ngrams[SENTENCE_START,] = (NEVER, math.log(backoffs.get((SENTENCE_START,), 1.0)))
    return NgramModel(order, ngrams)


class Fit(NamedTuple):
    """How well a model predicts texts."""

    perplexity: float  # of the words it lists and the ends of sentences
    words: int
    unknown: int  # words that it does not list

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.1f}, {self.unknown / self.words:.1%} of {self.words} words unknown"


def measure(model: NgramModel, texts: Iterable[str]) -> Fit:
    """Perplexity exp(-mean ln p) over texts, unknown words left out, as is usual. Raises LanguageModelError."""
    listed = model.words | {SENTENCE_END}
    total, scored, unknown, sentences = 0.0, 0, 0, 0
    for text in texts:
        state, sentences = model.start, sentences + 1
        for word in (*text.split(), SENTENCE_END):
            log_prob, state = model.score(state, word)
            if word in listed:
                total, scored = total + log_prob, scored + 1
            else:
                unknown += 1
    if not scored:
        raise LanguageModelError("there are no texts to measure a language model on")
    return Fit(math.exp(-total / scored), scored + unknown - sentences, unknown)
