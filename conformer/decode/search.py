"""Makes decoders from settings, for eval.py, transcribe.py and `conformer.load`."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from conformer import system
from conformer.decode.fusion import TokenFusion, WordFusion
from conformer.decode.greedy import Decoder, GreedyDecoder
from conformer.decode.homophones import Homophones
from conformer.decode.hotwords import HotWords
from conformer.decode.lexicon import Lexicon
from conformer.decode.prefix_beam import DecodeError, PrefixBeamDecoder, Scorer
from conformer.language.arpa import read_arpa
from conformer.language.compact import is_compact, read_compact
from conformer.language.ngrams import NgramModel
from conformer.tokenizer import SPACE_SYMBOL, SoundTokenizer, Tokenizer

HOTWORD_BONUS = 2.0  # nats a token
SEARCH_FILE = "search.json"


class SearchError(ValueError):
    """A file of settings that cannot be read; the message names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class Search:
    """Settings of a decoder. Raises DecodeError for those that a greedy one cannot follow."""

    beam_size: int = 0  # prefixes of a beam search; 0 = greedy
    lm: str | None = None  # of lm.py, or ARPA; words that hold `▁` are the tokenizer's units
    lm_weight: float = 0.5  # of its logarithms
    word_bonus: float = 0.0  # nats added for each word, or token of a model of tokens
    oov_rate: float = 0.01  # share of words that it does not list; 0 = no others
    hotwords: tuple[str, ...] = ()  # phrases to prefer

    def __post_init__(self):
        if self.beam_size == 0 and (self.lm or self.hotwords):
            raise DecodeError("--lm and --hotwords need a beam search: add --beam-size=8")

    def save(self, folder: pathlib.Path) -> None:
        """Keeps the settings beside a model, as `stored` reads them; the path of `lm` is relative to it."""
        values = dataclasses.asdict(self)
        if self.lm:
            values["lm"] = pathlib.Path(os.path.relpath(self.lm, folder)).as_posix()
        system.write_text(folder / SEARCH_FILE, json.dumps(values, indent=2) + "\n")

    def __str__(self) -> str:
        changed = [f"{name}={value}" for name, value in dataclasses.asdict(self).items() if value not in (None, ())]
        return " ".join(changed)


def check_nbest(count: int, search: Search) -> None:
    """Raises DecodeError where a search has not so many alternatives."""
    if count > 1 and count > search.beam_size:
        raise DecodeError(f"--nbest={count} needs a beam search that holds as many: add --beam-size={max(count, 8)}")


def read_lm(search: Search, tokenizer: Tokenizer) -> NgramModel | Lexicon | None:
    """The language model of a search, ready for any weights; None without one. Raises LanguageModelError."""
    if not search.lm:
        return None
    model = read_compact(search.lm)[0] if is_compact(search.lm) else read_arpa(search.lm)
    return model if any(SPACE_SYMBOL in word for word in model.words) else Lexicon(model, tokenizer)


def make_decoding(
    search: Search, tokenizer: Tokenizer, lm: NgramModel | Lexicon | None
) -> tuple[Tokenizer, Callable[[], Decoder]]:
    """Returns the tokenizer that writes what a search finds, and what makes the decoder of an utterance.

    `lm` is what `read_lm` returned; a search that names no model is made without one, whatever `lm` is. Of words that
    sound alike, the tokenizer writes those that the model prefers. Raises LanguageModelError or HotWordsError.
    """
    if not search.lm:
        lm = None
    writer = tokenizer
    if isinstance(lm, Lexicon) and isinstance(tokenizer, SoundTokenizer):
        writer = tokenizer.choosing(Homophones(lm.model))
    if search.beam_size == 0:
        return writer, GreedyDecoder
    scorers: list[Scorer] = []
    if isinstance(lm, Lexicon):
        weights = dict(lm_weight=search.lm_weight, word_bonus=search.word_bonus, oov_rate=search.oov_rate)
        scorers.append(WordFusion(lm, tokenizer, **weights))
    elif lm is not None:
        scorers.append(TokenFusion(lm, tokenizer, lm_weight=search.lm_weight, token_bonus=search.word_bonus))
    if search.hotwords:
        scorers.append(HotWords(search.hotwords, tokenizer, HOTWORD_BONUS))
    return writer, lambda: PrefixBeamDecoder(search.beam_size, scorers=scorers)


def stored(folder: pathlib.Path) -> dict[str, Any]:
    """The settings kept beside a model (`Search.save`); none where there are none. Raises SearchError."""
    path = folder / SEARCH_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        settings = dataclasses.asdict(Search(**values | {"hotwords": tuple(values.get("hotwords", ()))}))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SearchError(f"{path} holds no settings of a search ({error}): remove it, or tune again") from None
    if settings["lm"]:
        settings["lm"] = str(folder / settings["lm"])
    return settings


def search_beside(folder: pathlib.Path, given: dict[str, Any]) -> Search:
    """Returns the settings `given` by field; what they leave out is as `stored` in a model's folder.

    With `beam_size=0` the search is greedy, whatever is stored. Raises SearchError or DecodeError.
    """
    if isinstance(words := given.get("hotwords"), str):  # its letters would be taken for phrases
        raise DecodeError(f"hotwords={words!r} is one text: pass a tuple of phrases, ({words!r},)")
    complete = len(given) == len(dataclasses.fields(Search))
    search = Search(**({} if complete or given.get("beam_size") == 0 else stored(folder)) | given)
    weights = {"lm_weight", "word_bonus", "oov_rate"} & given.keys()
    if weights and not search.lm and not complete:
        raise DecodeError(f"{', '.join(sorted(weights))} weighs a language model, and none is named: name it with lm")
    return search


def define_search_flags() -> Callable[[pathlib.Path], Search]:
    """Defines `--beam-size` and what goes with it.

    Returns what reads them, by `search_beside` a model, once they are parsed.
    """
    from absl import flags  # here: an app that loads a model has no flags

    default = Search()
    flags.DEFINE_integer("beam-size", 0, "Prefixes of a beam search; 0 = greedy.", lower_bound=0)
    flags.DEFINE_string("lm", None, "N-gram model for it (lm.py, ARPA), of words or of the tokenizer's units.")
    flags.DEFINE_float("lm-weight", default.lm_weight, "Weight of its logarithms.")
    flags.DEFINE_float("word-bonus", default.word_bonus, "Nats added for a word (or token) of it.")
    flags.DEFINE_float("oov-rate", default.oov_rate, "Share of words that it does not list; 0 = none.")
    flags.DEFINE_list("hotwords", [], "Phrases for the beam search to prefer, comma separated.")

    def read(folder: pathlib.Path) -> Search:
        given = {}
        for field in dataclasses.fields(Search):
            flag = flags.FLAGS[field.name.replace("_", "-")]
            if flag.present:
                given[field.name] = tuple(flag.value or ()) if field.name == "hotwords" else flag.value
        return search_beside(folder, given)

    return read
