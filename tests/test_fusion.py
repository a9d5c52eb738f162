"""Fusion with n-gram models: what is added while a word grows and at its end, against sums over all words."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.config import TokenizerConfig
from conformer.decode.fusion import TokenFusion, WordFusion
from conformer.decode.homophones import Homophones
from conformer.decode.lexicon import Lexicon
from conformer.decode.search import Search, make_decoding
from conformer.language.arpa import read_arpa
from conformer.language.estimate import train_ngram
from conformer.language.ngrams import ROOT
from conformer.language.vocabulary import LanguageModelError
from conformer.pronunciation import Dictionary
from conformer.tokenizer import BpeTokenizer, CharTokenizer, SoundTokenizer, train_tokenizer

TEXTS = ["turn right", "turn left now", "turn right now", "go right", "stop", "to the left"]
LETTERS = CharTokenizer(["<blk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])
MODEL = train_ngram(TEXTS, 3)
LEXICON = Lexicon(MODEL, LETTERS)


def scored(model, context, word):
    """ln p(word | context), and the context behind it."""
    log_probs, contexts = model.score(np.array([context]), model.vocabulary.ids([word]))
    return float(log_probs[0]), int(contexts[0])


def word_prob(context, word, oov_rate):
    """P(word | context), as the documentation has it."""
    if word in MODEL.words:
        return (1 - oov_rate) * math.exp(scored(MODEL, context, word)[0])
    return oov_rate * math.exp(LEXICON.spelling.sentence(" ".join(word)))


def gains(fusion, ids):
    """Returns what each token adds, and what the end adds."""
    state, found = fusion.start, []
    for id in ids:
        gain, state = fusion.step(state, id)
        found.append(gain)
    return found, fusion.finish(state)


# ------------------------------------------------------------------------------------------------------ the lexicon


@settings(max_examples=40)
@given(
    texts=st.lists(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4).map(" ".join), min_size=1),
    order=st.integers(1, 4),
    history=st.lists(st.text("ab", min_size=1, max_size=3), max_size=4),
)
def test_look_ahead_is_the_sum_over_the_words_that_begin_so(texts, order, history):
    model = train_ngram(texts, order)
    lexicon, context = Lexicon(model, LETTERS), model.start
    for word in history:
        context = scored(model, context, word)[1]
    for letters in ("a", "b", "ab", "ba", "bb", "aba"):
        node = lexicon.root
        for letter in letters:
            node = node and node.child(letter)
        words = [word for word in model.words if word.startswith(letters)]
        assert (node is None) == (not words)
        if node is not None:
            expected = sum(math.exp(scored(model, context, word)[0]) for word in words)
            assert lexicon.prob(context, node) == pytest.approx(expected)
            word = model.vocabulary.words[node.words[0]] if node.words else None
            assert word == (letters if letters in words else None)


def test_a_model_that_is_not_interpolated_has_sums_all_the_same(tmp_path):
    """Back-off of "a" would say more of "b" than what is listed behind it."""
    (tmp_path / "lm.arpa").write_text(
        "\\data\\\nngram 1=6\nngram 2=1\n\n\\1-grams:\n-99\t<s>\n-1\t</s>\n-2\t<unk>\n-1\ta\t-0.1\n-0.2\tb\n-3\tbc\n\n"
        "\\2-grams:\n-2\ta b\n\n\\end\\\n"
    )
    lexicon = Lexicon(read_arpa(tmp_path / "lm.arpa"), LETTERS)
    node = lexicon.root.child("b")
    assert node is not None
    assert lexicon.prob(lexicon.model.context(["a"]), node) == pytest.approx(10**-2 + 10**-3.1)
    assert lexicon.prob(ROOT, node) == pytest.approx(10**-0.2 + 10**-3)


def test_words_that_cannot_be_spelled_are_left_out():
    with pytest.warns(UserWarning, match=r"1 of 3 words .* left out: .* tokenizer has not: 'é' \(U\+00E9\) once"):
        lexicon = Lexicon(train_ngram(["ab a", "éa a"]), CharTokenizer(["<blk>", "▁", "a", "b"]))
    assert lexicon.root.child("a") is not None and lexicon.root.child("é") is None
    with pytest.raises(LanguageModelError, match="can spell no word"):
        Lexicon(train_ngram(["éß é"]), LETTERS)


@pytest.fixture
def sounds():
    """A tokenizer of sounds: "read" has two, and one of them is that of "red"."""
    spoken = [("red", "ɹɛd"), ("read", "ɹid"), ("read", "ɹɛd"), ("reed", "ɹid"), ("now", "naʊ"), ("i", "aɪ")]
    texts = ["ɹɛd ɹid naʊ aɪ"] * 2
    units = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=20), texts)
    assert isinstance(units, BpeTokenizer)
    return SoundTokenizer(units.serialised(), Dictionary(spoken))


def node_of(lexicon, letters):
    node = lexicon.root
    for letter in letters:
        node = node.child(letter)
        assert node is not None
    return node


def test_words_may_share_sounds_and_have_several(sounds):
    model = train_ngram(["i read now", "i read", "red reed", "red now"], 2)
    lexicon = Lexicon(model, sounds)
    for context in (ROOT, model.start, model.context(["i"])):
        for letters, words in {"ɹ": "red read read reed", "ɹɛd": "red read", "ɹi": "read reed"}.items():
            expected = sum(math.exp(scored(model, context, word)[0]) for word in words.split())
            assert lexicon.prob(context, node_of(lexicon, letters)) == pytest.approx(expected)
    assert {model.vocabulary.words[id] for id in node_of(lexicon, "ɹɛd").words} == {"red", "read"}
    fusion = WordFusion(lexicon, sounds, lm_weight=1.0)
    for text in ("i read now", "red reed"):
        total = sum(gains(fusion, sounds.encode(text))[0]) + gains(fusion, sounds.encode(text))[1]
        assert total == pytest.approx(model.sentence(text))  # the likeliest words that sound so


def test_words_that_sound_alike_are_told_apart_by_the_model(sounds):
    model = train_ngram(["i read now", "i read", "red reed now", "red reed", "red reed", "red read now"], 3)
    chosen = Homophones(model)
    for choices in (
        [["i"], ["red", "read"], ["now"]],
        [["red", "read"], ["read", "reed"], ["now"]],
        [["reed", "read"]] * 3,
    ):
        best = max(itertools.product(*choices), key=lambda words: sum(word_log_probs(model, words)))
        assert sum(word_log_probs(model, chosen(choices))) == pytest.approx(sum(word_log_probs(model, best)))
    assert chosen([]) == []
    writer, _ = make_decoding(Search(beam_size=1, lm="a.lm"), sounds, Lexicon(model, sounds))
    assert writer.decode(sounds.encode("i read")) == "i read" and writer.decode(sounds.encode("red reed")) == "red reed"
    assert make_decoding(Search(), sounds, Lexicon(model, sounds))[0] is sounds


def word_log_probs(model, words):
    """ln p of each word behind those before it."""
    context, found = model.start, []
    for word in words:
        log_prob, context = scored(model, context, word)
        found.append(log_prob)
    return found


# --------------------------------------------------------------------------------------------------------- by words


@pytest.mark.parametrize("oov_rate", [0.0, 0.1])
@pytest.mark.parametrize("text", ["turn right", "stop", "turn left now", "go to the right now"])
def test_a_whole_text_gets_what_the_model_says_of_it(text, oov_rate):
    fusion = WordFusion(LEXICON, LETTERS, lm_weight=0.7, word_bonus=0.2, oov_rate=oov_rate)
    steps, end = gains(fusion, LETTERS.encode(text))
    words = text.split()
    expected = 0.7 * MODEL.sentence(text) + (0.2 + 0.7 * math.log1p(-oov_rate)) * len(words)
    assert sum(steps) + end == pytest.approx(expected)


@pytest.mark.parametrize("oov_rate", [0.0, 0.1])
def test_what_is_known_of_a_word_is_added_letter_by_letter(oov_rate):
    fusion = WordFusion(LEXICON, LETTERS, lm_weight=0.7, word_bonus=0.2, oov_rate=oov_rate)
    steps, end = gains(fusion, LETTERS.encode("turn t"))
    start, behind = MODEL.start, scored(MODEL, MODEL.start, "turn")[1]

    def begun(context, letters):
        listed = sum(word_prob(context, word, oov_rate) for word in MODEL.words if word.startswith(letters))
        state, spelled = LEXICON.spelling.start, 0.0
        for letter in letters:
            gain, state = LEXICON.spell(state, letter)
            spelled += gain
        return 0.7 * math.log(listed + oov_rate * math.exp(spelled))

    sums = [begun(start, "turn"[:length]) for length in range(1, 5)]
    complete = 0.7 * math.log(word_prob(start, "turn", oov_rate)) + 0.2
    sums += [complete, complete + begun(behind, "t")]
    assert np.cumsum(steps) == pytest.approx(sums)
    assert end == -math.inf if not oov_rate else math.isfinite(end)  # "t" is no word


def test_other_words_are_spelled_by_letters_or_not_at_all():
    ids = LETTERS.encode("turn roght")
    fusion = WordFusion(LEXICON, LETTERS, lm_weight=0.7, word_bonus=0.2, oov_rate=0.1)
    steps, end = gains(fusion, ids)
    behind = scored(MODEL, MODEL.start, "turn")[1]
    probs = word_prob(MODEL.start, "turn", 0.1) * word_prob(behind, "roght", 0.1)
    last = scored(MODEL, scored(MODEL, behind, "<unk>")[1], "</s>")[0]
    assert sum(steps) + end == pytest.approx(0.7 * (math.log(probs) + last) + 2 * 0.2)
    closed, _ = gains(WordFusion(LEXICON, LETTERS, lm_weight=0.7), ids)
    assert closed.index(-math.inf) == len("turn ro") - 1  # as soon as no word can follow
    assert gains(WordFusion(LEXICON, LETTERS, lm_weight=0.0), ids)[0].index(-math.inf) == len("turn ro") - 1


def test_spaces_and_longer_units_make_no_difference():
    pieces = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=40), TEXTS)
    assert len(pieces.encode("turn right now")) < len("turn right now")
    expected = sum(gains(WordFusion(LEXICON, LETTERS), LETTERS.encode("turn right now"))[0])
    assert sum(gains(WordFusion(LEXICON, pieces), pieces.encode("turn right now"))[0]) == pytest.approx(expected)
    spaced = [1, *LETTERS.encode("turn"), 1, 1, *LETTERS.encode("right now"), 1]
    closed = sum(gains(WordFusion(LEXICON, LETTERS), [*LETTERS.encode("turn right now"), 1])[0])
    assert sum(gains(WordFusion(LEXICON, LETTERS), spaced)[0]) == pytest.approx(closed)


@pytest.mark.parametrize(
    "weights",
    [{"oov_rate": -0.1}, {"oov_rate": 1.0}, {"lm_weight": -0.5}, {"lm_weight": math.inf}, {"word_bonus": math.nan}],
)
def test_weights_that_cannot_be(weights):
    ((name, value),) = weights.items()
    with pytest.raises(LanguageModelError, match=f"{name}={value} must"):
        WordFusion(LEXICON, LETTERS, **weights)


# -------------------------------------------------------------------------------------------------------- by tokens


def test_tokens_are_scored_at_once():
    spelled = {text: " ".join(LETTERS.symbols[id] for id in LETTERS.encode(text)) for text in TEXTS}
    model = train_ngram(spelled.values(), 4)
    fusion = TokenFusion(model, LETTERS, lm_weight=0.5, token_bonus=0.1)
    steps, end = gains(fusion, LETTERS.encode("turn right"))
    assert sum(steps) + end == pytest.approx(0.5 * model.sentence(spelled["turn right"]) + 10 * 0.1)
    with pytest.raises(LanguageModelError, match="'ab' of the language model is not a unit"):
        TokenFusion(train_ngram(["ab a"]), LETTERS)


def test_words_of_a_model_are_spelled_as_transcripts_are():
    tokenizer = CharTokenizer(["<blk>", "▁", "'", "a", "b"])
    lower, upper = (Lexicon(train_ngram([text]), tokenizer) for text in ("ab a'b ab", "AB A\u2019B AB"))
    assert lower.model.words == upper.model.words == ["a'b", "ab"]
    sums = []
    for lexicon in (lower, upper):
        node = lexicon.root.child("a")
        assert node is not None
        sums.append(lexicon.prob(scored(lexicon.model, lexicon.model.start, "ab")[1], node))
    assert sums[0] == sums[1] > 0
    with pytest.raises(LanguageModelError, match=r"'(ab|AB)' and '(ab|AB)', to a recogniser both 'ab'"):
        Lexicon(train_ngram(["ab AB"]), tokenizer)
