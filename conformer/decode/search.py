"""From settings to a decoder: what eval.py and transcribe.py search with."""

import dataclasses
from collections.abc import Callable

from absl import flags

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

    def __str__(self) -> str:
        changed = [f"{name}={value}" for name, value in dataclasses.asdict(self).items() if value not in (None, ())]
        return " ".join(changed)


def check_nbest(count: int, search: Search) -> None:
    """Raises DecodeError where a search has not so many alternatives."""
    if count > 1 and count > search.beam_size:
        raise DecodeError(f"--nbest={count} needs a beam search that holds as many: add --beam-size={max(count, 8)}")


def read_lm(search: Search, tokenizer: Tokenizer) -> NgramModel | Lexicon | None:
    """The language model of a search, ready for any weights; None without one. Raises LanguageModelError.

    A tokenizer of sounds then writes, of words that sound alike, those that the model prefers.
    """
    if search.lm is None:
        return None
    model = read_compact(search.lm)[0] if is_compact(search.lm) else read_arpa(search.lm)
    if any(SPACE_SYMBOL in word for word in model.words):
        return model
    lexicon = Lexicon(model, tokenizer)
    if isinstance(tokenizer, SoundTokenizer):
        tokenizer.choose = Homophones(lexicon.model)
    return lexicon


def make_decoder(search: Search, tokenizer: Tokenizer, lm: NgramModel | Lexicon | None) -> Callable[[], Decoder]:
    """What makes the decoder of an utterance, from what `read_lm` returned. LanguageModelError or HotWordsError.

    A search that names no model is made without one, whatever `lm` is.
    """
    if search.beam_size == 0:
        return GreedyDecoder
    scorers: list[Scorer] = []
    if search.lm is None:
        lm = None
    if isinstance(lm, Lexicon):
        weights = dict(lm_weight=search.lm_weight, word_bonus=search.word_bonus, oov_rate=search.oov_rate)
        scorers.append(WordFusion(lm, tokenizer, **weights))
    elif lm is not None:
        scorers.append(TokenFusion(lm, tokenizer, lm_weight=search.lm_weight, token_bonus=search.word_bonus))
    if search.hotwords:
        scorers.append(HotWords(search.hotwords, tokenizer, HOTWORD_BONUS))
    return lambda: PrefixBeamDecoder(search.beam_size, scorers=scorers)


def define_search_flags() -> Callable[[], Search]:
    """Defines `--beam-size` and what goes with it. Returns what reads them once they are parsed."""
    default = Search()
    beam_size = flags.DEFINE_integer("beam-size", 0, "Prefixes of a beam search; 0 = greedy.", lower_bound=0)
    lm = flags.DEFINE_string("lm", None, "N-gram model for it (lm.py, ARPA), of words or of the tokenizer's units.")
    lm_weight = flags.DEFINE_float("lm-weight", default.lm_weight, "Weight of its logarithms.")
    word_bonus = flags.DEFINE_float("word-bonus", default.word_bonus, "Nats added for a word (or token) of it.")
    oov_rate = flags.DEFINE_float("oov-rate", default.oov_rate, "Share of words that it does not list; 0 = none.")
    hotwords = flags.DEFINE_list("hotwords", [], "Phrases for the beam search to prefer, comma separated.")
    return lambda: Search(
        beam_size.value, lm.value, lm_weight.value, word_bonus.value, oov_rate.value, tuple(hotwords.value)
    )
