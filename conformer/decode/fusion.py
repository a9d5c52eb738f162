"""Shallow fusion: scorers of `PrefixBeamDecoder` that add what an n-gram model says of the tokens or of the words."""

import math
from typing import NamedTuple

import numpy as np

from conformer.decode.lexicon import Lexicon, Node
from conformer.language.ngrams import Following, NgramModel
from conformer.language.vocabulary import END, SENTENCE_END, UNK, LanguageModelError
from conformer.tokenizer import SPACE_SYMBOL, Tokenizer

NEVER = -math.inf


class TokenFusion:
    """Adds lm_weight ln p(token | tokens before) + token_bonus for each token, and lm_weight ln p(`</s>`) at the end.

    The model's words are the tokenizer's symbols. Raises LanguageModelError when they are not, or for a weight below 0.
    """

    def __init__(self, model: NgramModel, tokenizer: Tokenizer, *, lm_weight: float = 0.5, token_bonus: float = 0.0):
        if strangers := set(model.words).difference(tokenizer.symbols):
            raise LanguageModelError(
                f"{min(strangers)!r} of the language model is not a unit of the tokenizer: train it on texts of units"
            )
        _check_weights(lm_weight, token_bonus)
        self._following = Following(model, np.append(model.vocabulary.ids(tokenizer.symbols), END))
        self._lm_weight = lm_weight
        self._token_bonus = token_bonus
        self.most = max(0.0, token_bonus)
        self.start = model.start

    def step(self, state: int, id: int) -> tuple[float, int]:
        """Implements `Scorer.step`."""
        log_probs, states = self._following(state)
        return self._lm_weight * log_probs[id] + self._token_bonus, states[id]

    def finish(self, state: int) -> float:
        """Implements `Scorer.finish`."""
        return self._lm_weight * self._following(state)[0][-1]


class WordFusion:
    """Adds lm_weight ln P(word | words before) + word_bonus for each word, and lm_weight ln p(`</s>`) at the end.

    With r = oov_rate, the share of words to expect that the model does not list,

        P(w | h) = (1 - r) p(w | h) if the model lists w, else r spelling(w)

    where spelling is an n-gram of the letters of the listed words. r = 0 lets no other word be spelled. What is known
    of a word while it grows, (1 - r) P(letters | h) + r spelling(letters), is added at once (`Lexicon`) and replaced
    when a `▁` or the end of the utterance completes the word: so that the beam keeps the letters that lead to a likely
    word. `word_bonus`, in nats, makes up for what every further word costs.

    Raises LanguageModelError for an oov_rate outside [0, 1), or a weight below 0.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        tokenizer: Tokenizer,
        *,
        lm_weight: float = 0.5,
        word_bonus: float = 0.0,
        oov_rate: float = 0.0,
    ):
        if not 0 <= oov_rate < 1:
            raise LanguageModelError(f"oov_rate={oov_rate} must lie in [0, 1)")
        _check_weights(lm_weight, word_bonus)
        self._lexicon = lexicon
        self._pieces = [symbol.split(SPACE_SYMBOL) for symbol in tokenizer.symbols]
        self._lm_weight = lm_weight
        self._word_bonus = word_bonus
        self._oov_rate = oov_rate
        self.most = max(0.0, word_bonus) * max(map(len, self._pieces))  # no letter makes a word likelier
        self.start = self._between(lexicon.model.start)

    def step(self, state: "_State", id: int) -> tuple[float, "_State"]:
        """Implements `Scorer.step`."""
        before, gain = state, 0.0
        piece, *pieces = self._pieces[id]
        if piece:
            state = self._spell(state, piece)
            gain = state.paid - before.paid
        for piece in pieces:  # each behind a `▁`
            if gain == NEVER:
                break
            if state.begun:
                gained, context = self._complete(state)
                gain += gained
                state = self._between(context)
            if piece:
                state = self._spell(state, piece)
                gain += state.paid
        return (NEVER, before) if gain == NEVER else (gain, state)

    def finish(self, state: "_State") -> float:
        """Implements `Scorer.finish`."""
        gain, context = self._complete(state) if state.begun else (0.0, state.context)
        return gain + self._lm_weight * self._lexicon.follow(context, END)[0]

    def _between(self, context: int) -> "_State":
        """Returns the state behind the words of a context, before the next word."""
        return _State(context, False, self._lexicon.root, 0.0, self._lexicon.spelling.start, 0.0)

    def _spell(self, state: "_State", letters: str) -> "_State":
        """Returns the state after more letters of a word."""
        context, _, node, _, written, spelled = state
        for letter in letters:
            node = node and node.child(letter)
            if self._oov_rate:
                log_prob, written = self._lexicon.spell(written, letter)
                spelled += log_prob
        prob = self._oov_rate and self._oov_rate * math.exp(spelled)
        if node is not None:
            prob += (1 - self._oov_rate) * self._lexicon.prob(context, node)
        return _State(context, True, node, self._weighted(prob), written, spelled)

    def _complete(self, state: "_State") -> tuple[float, int]:
        """Returns the gain, in nats, of ending the word that is being spelled, and the context of words behind it."""
        if state.node is not None and state.node.words:  # the likeliest of those that are spelled so
            log_prob, context = max(self._lexicon.follow(state.context, word) for word in state.node.words)
            prob = (1 - self._oov_rate) * math.exp(log_prob)
        else:
            context = self._lexicon.follow(state.context, UNK)[1]
            end = self._lexicon.spell(state.written, SENTENCE_END)[0]
            prob = self._oov_rate and self._oov_rate * math.exp(state.spelled + end)
        return self._weighted(prob) + self._word_bonus - state.paid, context

    def _weighted(self, prob: float) -> float:
        return self._lm_weight * math.log(prob) if prob else NEVER


class _State(NamedTuple):
    context: int  # the words before
    begun: bool  # whether the next one has letters
    node: Node | None  # of its letters; None: no listed word begins with them
    paid: float  # what was added for them
    written: int  # its last letters
    spelled: float  # ln spelling(its letters), while other words are possible


def _check_weights(lm_weight: float, bonus: float) -> None:
    if not 0 <= lm_weight < math.inf:
        raise LanguageModelError(f"lm_weight={lm_weight} must be at least 0, and finite")
    if not math.isfinite(bonus):  # NaN would compare as neither better nor worse than any other score
        raise LanguageModelError(f"word_bonus={bonus} must be finite")
