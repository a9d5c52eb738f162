"""Prefix beam search against enumeration, in any chunking, with a language model and with hot words."""

import itertools
import tracemalloc
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.config import TokenizerConfig
from conformer.decode.fusion import TokenFusion, WordFusion
from conformer.decode.greedy import GreedyDecoder, greedy
from conformer.decode.hotwords import HotWords, HotWordsError
from conformer.decode.lexicon import Lexicon
from conformer.decode.prefix_beam import DecodeError, PrefixBeamDecoder
from conformer.language.estimate import train_ngram
from conformer.tokenizer import BLANK, CharTokenizer, Tokenizer, train_tokenizer

EVERYTHING = {"beam_size": 1_000, "top_k": 1_000, "min_log_prob": -np.inf}
TOKENIZER = CharTokenizer(["<blk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])
ABC = CharTokenizer(["<blk>", "▁", "a", "b"])


def log_softmax(logits):
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def random_frames(seed, num_frames, vocab, scale):
    return log_softmax(np.random.default_rng(seed).normal(size=(num_frames, vocab)) * scale)


def emissions(text, doubts, tokenizer: Tokenizer = TOKENIZER):
    """Two confident frames a token, the second blank; `doubts` are {token position: {id: probability}}."""
    probs = []
    for position, id in enumerate(tokenizer.encode(text)):
        probs += [doubts.get(position, {id: 1.0}), {BLANK: 1.0}]
    frames = np.full((len(probs), tokenizer.vocab_size), 1e-6, np.float32)
    for frame, row in zip(frames, probs, strict=True):
        frame[list(row)] = list(row.values())
    return np.log(frames / frames.sum(1, keepdims=True))


def decode(log_probs, **options):
    decoder = PrefixBeamDecoder(**options)
    decoder.step(log_probs)
    return decoder.finish()


def text_of(tokens, tokenizer: Tokenizer = TOKENIZER):
    return tokenizer.decode([token.id for token in tokens])


def spelled(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK)


def enumerated(log_probs):
    """{labelling: (log probability, log probability of its best path, that path)}, from all paths."""
    paths = defaultdict(list)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = sum(float(log_probs[frame, symbol]) for frame, symbol in enumerate(path))
        paths[spelled(path)].append((score, path))
    return {
        labels: (np.logaddexp.reduce([score for score, _ in found]), *max(found)) for labels, found in paths.items()
    }


def added(scorers, labels):
    """Returns what scorers add to a labelling."""
    total = 0.0
    for scorer in scorers:
        state = scorer.start
        for id in labels:
            gain, state = scorer.step(state, id)
            total += gain
        total += scorer.finish(state)
    return total


def word_fusion(texts, tokenizer: Tokenizer = TOKENIZER, **weights):
    return WordFusion(Lexicon(train_ngram(texts), tokenizer), tokenizer, **weights)


def abc_scorers(oov_rate=0.1):
    letters = train_ngram(["a b ▁ a", "a a"], order=3)
    return [
        word_fusion(["ab a", "ab b", "a a b"], ABC, lm_weight=0.8, word_bonus=0.3, oov_rate=oov_rate),
        TokenFusion(letters, ABC, lm_weight=0.4),
        HotWords(["ab", "b a"], ABC, bonus_per_token=1.5),
    ]


# ------------------------------------------------------------------------------------------------------- exactness


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_frames=st.integers(0, 5),
    vocab=st.integers(3, 4),
    scale=st.sampled_from([0.3, 2.0, 8.0]),
)
def test_equals_the_enumeration_of_all_paths(seed, num_frames, vocab, scale):
    log_probs = random_frames(seed, num_frames, vocab, scale)
    decoder, expected = PrefixBeamDecoder(**EVERYTHING), enumerated(log_probs)
    decoder.step(log_probs)
    hypotheses = decoder.hypotheses
    assert len(hypotheses) == len(expected)
    assert decoder.tokens == hypotheses[0].tokens
    assert [h.log_prob for h in hypotheses] == sorted((h.log_prob for h in hypotheses), reverse=True)
    for tokens, log_prob, score in hypotheses:
        total, best, path = expected[tuple(token.id for token in tokens)]
        assert score == log_prob == pytest.approx(total, abs=1e-5)
        # Timestamps are those of the best path: its emissions are where a label is entered.
        frames = [t for t, symbol in enumerate(path) if symbol != BLANK and symbol != (BLANK, *path)[t]]
        alignment = [token.frame for token in tokens]
        assert alignment == frames or best_path(log_probs, tokens) == pytest.approx(best, abs=1e-5)
        assert all(token.log_prob == pytest.approx(log_probs[token.frame, token.id]) for token in tokens)


def best_path(log_probs, tokens):
    """The best score of the paths that emit `tokens` at their frames: between two, the label lasts, then blanks."""
    bounds = [*(token.frame for token in tokens), len(log_probs)]
    total = float(log_probs[: bounds[0], BLANK].sum())
    for index, token in enumerate(tokens):
        run = log_probs[bounds[index] : bounds[index + 1]].astype(np.float64)
        again = index + 1 < len(tokens) and tokens[index + 1].id == token.id
        total += max(
            run[:held, token.id].sum() + run[held:, BLANK].sum() for held in range(1, len(run) + 1 - int(again))
        )
    return total


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), num_frames=st.integers(0, 5), oov_rate=st.sampled_from([0.0, 0.1]))
def test_scorers_add_what_they_say_of_the_labelling(seed, num_frames, oov_rate):
    log_probs, scorers = random_frames(seed, num_frames, 4, 1.0), abc_scorers(oov_rate)
    decoder, expected = PrefixBeamDecoder(**EVERYTHING, scorers=scorers), enumerated(log_probs)
    decoder.step(log_probs)
    decoder.finish()
    scores = {tuple(token.id for token in hypothesis.tokens): hypothesis.score for hypothesis in decoder.hypotheses}
    wanted = {labels: found[0] + added(scorers, labels) for labels, found in expected.items()}
    if oov_rate:
        assert scores.keys() == wanted.keys()
    # What ends within a word has no score; what no word begins with is not even in the beam.
    assert {labels for labels, score in scores.items() if score > -np.inf} == {
        labels for labels, score in wanted.items() if score > -np.inf
    }
    assert scores == pytest.approx({labels: wanted[labels] for labels in scores})
    assert scores[tuple(token.id for token in decoder.tokens)] == max(scores.values())


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), beam_size=st.integers(1, 12), scale=st.sampled_from([0.5, 3.0]))
def test_what_is_not_asked_about_could_not_have_been_in_the_beam(seed, beam_size, scale):
    """A scorer that promises nothing is asked about every token."""
    log_probs = random_frames(seed, 12, 4, scale)
    promising = PrefixBeamDecoder(beam_size, scorers=abc_scorers())
    silent = abc_scorers()
    for scorer in silent:
        scorer.most = 1e9
    asked = PrefixBeamDecoder(beam_size, scorers=silent)
    for decoder in (promising, asked):
        decoder.step(log_probs)
        decoder.finish()
    assert promising.hypotheses == asked.hypotheses


def test_sum_of_paths_beats_the_best_path():
    """Two frames of p(blank) = 0.6, p(a) = 0.4: no single path beats the blanks, but p(a) = 0.64 (Graves, 2012)."""
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], np.float32))
    assert greedy(log_probs) == []
    tokens = decode(log_probs)
    assert [token.id for token in tokens] == [1]
    assert PrefixBeamDecoder().tokens == []


@pytest.mark.parametrize("beam_size", [1, 8])
def test_agrees_with_greedy_on_confident_frames(beam_size):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 12, 200) * (rng.random(200) < 0.5)
    log_probs = log_softmax(np.eye(12)[ids] * 12 + rng.normal(size=(200, 12)) * 0.3)
    assert [token[:2] for token in decode(log_probs, beam_size=beam_size)] == [token[:2] for token in greedy(log_probs)]


def test_pruning_keeps_what_matters():
    log_probs = random_frames(1, 60, 200, 4.0)
    wide = decode(log_probs, top_k=200, min_log_prob=-np.inf)
    assert decode(log_probs) == wide
    # Nothing but the best symbol of a frame passes, however improbable that is.
    assert decode(log_probs, top_k=1, min_log_prob=0.0)


# -------------------------------------------------------------------------------------------------------- streaming


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    beam_size=st.sampled_from([1, 3, 8]),
    scored=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=8),
)
def test_any_chunking_gives_the_same_tokens(seed, beam_size, scored, cuts):
    log_probs, scorers = random_frames(seed, 40, 4, 2.5), abc_scorers() if scored else []
    decoder, stable = PrefixBeamDecoder(beam_size, scorers=scorers), []
    for start, stop in itertools.pairwise([0, *sorted(cuts), 40]):
        stable += decoder.step(log_probs[start:stop])
        assert decoder.tokens[: decoder.num_stable] == stable
    tokens = decoder.finish()
    assert tokens == decode(log_probs, beam_size=beam_size, scorers=scorers)
    assert tokens[: len(stable)] == stable
    assert decoder.finish() == decoder.tokens == tokens and decoder.num_stable == len(tokens)
    assert [token.frame for token in tokens] == sorted({token.frame for token in tokens})


def test_greedy_has_the_same_interface():
    log_probs, decoder = random_frames(2, 40, 6, 3.0), GreedyDecoder()
    tokens = decoder.step(log_probs[:17]) + decoder.step(log_probs[17:])
    assert decoder.tokens == decoder.finish() == tokens == greedy(log_probs)
    assert decoder.num_stable == len(tokens)


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("make", [GreedyDecoder, PrefixBeamDecoder])
def test_tokens_that_are_forgotten_change_no_other(make, scored):
    """The tokens taken one after the other are those of the whole: with each prefix, and whatever the scorers say."""
    if scored and make is GreedyDecoder:
        return
    for seed in range(5):
        log_probs, options = random_frames(seed, 60, 4, 2.5), {"scorers": abc_scorers()} if scored else {}
        whole, decoder, taken = make(**options), make(**options), []
        whole.step(log_probs)
        for frames in np.array_split(log_probs, 17):
            decoder.step(frames)
            count = decoder.num_stable // 2
            taken += decoder.tokens[:count]
            decoder.forget(count)
        assert taken + decoder.finish() == whole.finish() and taken


@pytest.mark.parametrize("make", [GreedyDecoder, PrefixBeamDecoder])
@pytest.mark.parametrize("cut", range(1, 8))
def test_a_run_that_lasts_over_the_border_of_utterances_is_one_token(make, cut):
    path = np.array([0, 2, 2, 3, 3, 0, 3, 1])
    log_probs = np.log(np.where(np.arange(4) == path[:, None], 0.97, 0.01).astype(np.float32))
    decoder = make()
    decoder.step(log_probs[:cut])
    tokens = decoder.finish()
    decoder.restart()
    assert decoder.tokens == [] and decoder.num_stable == 0
    decoder.step(log_probs[cut:])
    tokens += decoder.finish()
    assert [token[:2] for token in tokens] == [(2, 1), (3, 3), (3, 6), (1, 7)]


def ambiguous(seed, num_frames=25):
    """Frames that leave room for doubt: left alone, the doubt about the first ones would last for ever."""
    return log_softmax(np.random.default_rng(seed).normal(size=(num_frames, 30)) * 4)


def test_old_tokens_become_final():
    decoder, stable = PrefixBeamDecoder(max_delay=20), []
    for seed in range(30):
        stable += decoder.step(ambiguous(seed))
        tokens, num_frames = decoder.tokens, 25 * (seed + 1)
        assert tokens[: len(stable)] == stable
        assert len(stable) == decoder.num_stable >= sum(token.frame < num_frames - 20 for token in tokens)
    assert len(stable) > 300


def test_memory_grows_with_the_tokens_alone():
    decoder, held = PrefixBeamDecoder(max_delay=20), []
    tracemalloc.start()
    for seed in range(24):
        decoder.step(ambiguous(seed))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert len(decoder.tokens) > 500
    assert max(held[12:]) - max(held[:12]) < 500 * 300  # bytes: about 300 tokens came in the second half


def test_tokens_become_final_in_silence():
    decoder, speech = PrefixBeamDecoder(), emissions("call", {0: {3: 0.4, 4: 0.6}, 2: {13: 0.9, BLANK: 0.1}})
    silence = log_softmax(np.eye(TOKENIZER.vocab_size)[np.zeros(130, int)] * 12)
    decoder.step(np.concatenate([speech, silence]))
    assert text_of(decoder.tokens) == "call" and decoder.num_stable == 4


def test_delay_changes_nothing_but_old_doubts():
    log_probs = ambiguous(0, 60)
    assert decode(log_probs, max_delay=30) == decode(log_probs, max_delay=60)


def test_what_cannot_be_decoded():
    with pytest.raises(DecodeError, match="beam_size=0"):
        PrefixBeamDecoder(0)
    decoder = PrefixBeamDecoder()
    decoder.step(random_frames(3, 5, 4, 1.0))
    broken = random_frames(3, 5, 4, 1.0)
    broken[2, 1] = np.nan
    with pytest.raises(DecodeError, match="frame 7 hold NaN"):
        decoder.step(broken)
    with pytest.raises(DecodeError, match="no symbol is possible at frame 5"):
        decoder.step(np.full((1, 4), -np.inf, np.float32))
    decoder = PrefixBeamDecoder()
    decoder.finish()
    with pytest.raises(DecodeError, match="after finish"):
        decoder.step(broken)


def test_impossible_symbols():
    log_probs = np.full((3, 4), -np.inf, np.float32)
    log_probs[[0, 1, 2], [2, 2, 3]] = 0.0
    assert [token[:2] for token in decode(log_probs)] == [(2, 0), (3, 2)]


# --------------------------------------------------------------------------------------------------- language model


def right_or_wright(text, position, prob_w):
    """`text` with "wright" in it, whose silent w, at `position`, is heard with a probability."""
    return emissions(text, {position: {TOKENIZER.symbols.index("w"): prob_w, BLANK: 1 - prob_w}})


def test_language_model_of_words_tells_homophones_apart():
    texts = ["turn right", "turn right now", "turn left", "the wright brothers", "a wright"]
    scorer = word_fusion(texts, lm_weight=0.6)
    turn, the = right_or_wright("turn wright now", 5, 0.7), right_or_wright("the wright brothers", 4, 0.3)
    assert (text_of(greedy(turn)), text_of(greedy(the))) == ("turn wright now", "the right brothers")
    assert text_of(decode(turn, scorers=[scorer])) == "turn right now"
    assert text_of(decode(the, scorers=[scorer])) == "the wright brothers"


def test_only_words_of_the_lexicon_are_spelled():
    """One frame says "b" a little louder than "c": nothing but the lexicon forbids "bab"."""
    b, c = (TOKENIZER.symbols.index(letter) for letter in "bc")
    log_probs = emissions("a bab", {2: {b: 0.6, c: 0.4}})
    assert text_of(decode(log_probs)) == "a bab"
    assert text_of(decode(log_probs, scorers=[word_fusion(["a cab"], lm_weight=0.0)])) == "a cab"
    assert text_of(decode(log_probs, scorers=[word_fusion(["a cab"], lm_weight=0.01, oov_rate=0.5)])) == "a bab"
    # A word that the end cuts off is none: the best text of whole words is left, unlikely as it is.
    assert text_of(decode(emissions("a ca", {}), scorers=[word_fusion(["a cab"])])) == "a a"


def test_look_ahead_keeps_the_letters_of_likely_words_in_the_narrowest_beam():
    """Letters that lead to an unlikely word are the louder ones until its end."""
    q, s = (TOKENIZER.symbols.index(letter) for letter in "qs")
    scorer = word_fusion(["the sat", "the sat", "the sat", "a qat"], lm_weight=2.0)
    log_probs = emissions("the qat", {4: {q: 0.7, s: 0.3}})
    assert text_of(decode(log_probs, scorers=[scorer], beam_size=1)) == "the sat"


def test_language_model_of_characters():
    texts = ["turn right", "turn right now", "turn left"]
    model = train_ngram((" ".join(TOKENIZER.symbols[id] for id in TOKENIZER.encode(text)) for text in texts), 5)
    scorer = TokenFusion(model, TOKENIZER, lm_weight=0.5)
    log_probs = right_or_wright("turn wright now", 5, 0.7)
    assert text_of(decode(log_probs, scorers=[scorer])) == "turn right now"


def bpe():
    texts = ["turn right", "turn write", "right turn", "write now", "turn now"]
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=128), texts)


def test_language_model_and_hot_words_of_byte_pairs():
    tokenizer = bpe()
    right, write = tokenizer.encode("right")[0], tokenizer.encode("write")[0]
    log_probs = emissions("turn write now", {1: {write: 0.7, right: 0.3}}, tokenizer)
    assert text_of(greedy(log_probs), tokenizer) == text_of(decode(log_probs), tokenizer) == "turn write now"
    pieces = train_ngram(["▁turn ▁right", "▁turn ▁right ▁now", "▁write ▁now"])
    for scorer in (
        word_fusion(["turn right", "turn right now", "write now"], tokenizer),
        TokenFusion(pieces, tokenizer),
        HotWords(["right"], tokenizer, 1.0),
        HotWords(["turn right"], tokenizer, 1.0),
    ):
        assert text_of(decode(log_probs, scorers=[scorer]), tokenizer) == "turn right now"


def test_word_bonus_makes_up_for_short_words():
    space = TOKENIZER.symbols.index("▁")
    log_probs = emissions("to day", {2: {space: 0.5, BLANK: 0.5}})
    scorers = [word_fusion(["to day", "today", "to night"], word_bonus=bonus) for bonus in (-3.0, 3.0)]
    texts = [text_of(decode(log_probs, scorers=[scorer])) for scorer in scorers]
    assert texts == ["today", "to day"]


# ---------------------------------------------------------------------------------------------------- hot words


def test_hot_words_bring_out_a_name():
    log_probs = right_or_wright("call wright", 5, 0.3)
    assert text_of(decode(log_probs)) == "call right"
    hot = HotWords(["wright"], TOKENIZER, bonus_per_token=0.5)
    assert text_of(decode(log_probs, scorers=[hot])) == "call wright"
    # An unfinished phrase helps no one.
    assert text_of(decode(log_probs, scorers=[HotWords(["wrights"], TOKENIZER, 0.5)])) == "call right"


@pytest.mark.parametrize(
    ("phrases", "text", "rewarded"),
    [
        (["art"], "art", 3),
        (["art"], "an art is", 3),
        (["art"], "art art", 6),
        (["art"], "party", 0),  # not from the start of a word
        (["art"], "artist", 0),  # not to its end
        (["art"], "ar", 0),
        (["art", "artist"], "artist", 6),
        (["art", "artist"], "artis", 0),
        (["new york", "new york city"], "new york", 8),
        (["new york", "new york city"], "new york cit", 8),
        (["new york city", "york"], "in new york citizens", 4),
        (["new york", "york minster"], "new york minster", 16),  # no token twice
        (["new york", "york city hall"], "new york citizens", 8),
        (["new york state", "york city"], "new york city hall", 9),
        (["big red", "red"], "big red", 7),
        (["a a"], "a a a", 5),  # the last two as well as the first two: each token once
        ([], "anything", 0),
    ],
)
def test_what_is_rewarded(phrases, text, rewarded):
    hot = HotWords(phrases, TOKENIZER, bonus_per_token=2.0)
    assert added([hot], TOKENIZER.encode(text)) == pytest.approx(2.0 * rewarded)


@pytest.mark.parametrize(
    ("text", "gains"),
    [
        ("art is", [2, 2, 2, 0, 0, 0]),
        ("artist", [2, 2, 2, -6, 0, 0]),
        ("at art", [2, -2, 0, 2, 2, 2]),
        ("is art", [0, 0, 0, 2, 2, 2]),
    ],
)
def test_rewards_come_at_once_and_go_when_the_phrase_breaks(text, gains):
    hot = HotWords(["art"], TOKENIZER, bonus_per_token=2.0)
    state, found = hot.start, []
    for id in TOKENIZER.encode(text):
        gain, state = hot.step(state, id)
        found.append(gain)
    assert found == gains and hot.finish(state) == 0


def test_what_is_rewarded_of_byte_pairs():
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=14), ["art is", "art is", "party is art"])
    phrase, longer, other = (tokenizer.encode(text) for text in ("art", "artist", "party"))
    assert longer[: len(phrase)] == phrase and other[: len(phrase)] != phrase
    hot = HotWords(["art", "art is"], tokenizer, bonus_per_token=2.0)
    assert added([hot], phrase) == 2.0 * len(phrase)
    assert added([hot], longer) == added([hot], other) == 0
    assert added([hot], tokenizer.encode("party art is art")) == 2.0 * len(tokenizer.encode("art is art"))


def test_hot_words_that_cannot_be():
    with pytest.raises(HotWordsError, match=r"'Bob7' cannot be spelled: character '7'"):
        HotWords(["bob", "Bob7"], TOKENIZER, 1.0)
    with pytest.raises(HotWordsError, match="'  ' hold no word"):
        HotWords(["  "], TOKENIZER, 1.0)
    with pytest.raises(HotWordsError, match="bonus_per_token=0"):
        HotWords(["bob"], TOKENIZER, 0.0)
