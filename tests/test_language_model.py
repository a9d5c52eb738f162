"""N-gram models: values worked out by hand, sums over the vocabulary, ARPA files in and out, and what they refuse."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.decode.language_model import LanguageModelError, NgramModel, measure, train_ngram

TEXTS = ["turn right", "turn left now", "turn right now", "go right", "stop"]
WORDS = ["a", "b", "c", "d"]
sentences = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8)

ARPA = """written by hand
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.5
-0.7\t</s>
-0.4\ta\t-0.3
-0.6\tb\t0.1

\\2-grams:
-0.2\t<s> a\t-0.25
-0.5\ta b\t-0.125
-0.3\tb </s>

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


def decimal(model, state, word):
    """log10 p(word | state)."""
    return model.score(state, word)[0] / math.log(10)


def contexts(model, words):
    """Every state that texts of these words can lead to in up to three steps."""
    states = {model.start}
    for _ in range(3):
        states |= {model.score(state, word)[1] for state in states for word in words}
    return states


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(ARPA)
    return path


def test_longest_listed_ngram_and_back_off(arpa):
    model = NgramModel.from_arpa(arpa)
    assert model.order == 3 and model.words == {"a", "b"} and model.start == ("<s>",)
    log_prob, state = model.score(model.start, "a")
    assert state == ("<s>", "a") and log_prob == pytest.approx(-0.2 * math.log(10))
    assert decimal(model, state, "b") == pytest.approx(-0.05)
    assert decimal(model, state, "a") == pytest.approx(-0.25 - 0.3 - 0.4)  # neither <s> a a nor a a is listed
    assert decimal(model, ("a", "b"), "</s>") == pytest.approx(-0.125 - 0.3)
    assert decimal(model, ("b", "b"), "a") == pytest.approx(0.1 - 0.4)  # nothing backs off from the unlisted b b
    assert decimal(model, model.start, "zebra") == pytest.approx(-0.5 - 1.0)
    assert model.score(model.start, "zebra")[1] == ("<s>", "<unk>")
    assert model.sentence("a b") == pytest.approx((-0.2 - 0.05 - 0.125 - 0.3) * math.log(10))


def test_kneser_ney_by_hand():
    """Bigrams of "a b", "a b", "a c": n_1 = 2 (a c, c </s>), n_2 = 2 (a b, b </s>), so D = 2 / (2 + 2 * 2) = 1/3."""
    model = train_ngram(["a b", "a b", "a c"], order=2)

    def prob(context, word):
        return math.exp(model.score(context, word)[0])

    # Distinct words before a, b, c and </s>: 1, 1, 1 and 2, so n_1 = 3, n_2 = 1, D = 3/5 and V = 5 with <unk>.
    base = 3 / 5 * 4 / 5 / 5
    a, end = (1 - 3 / 5) / 5 + base, (2 - 3 / 5) / 5 + base
    assert prob((), "a") == pytest.approx(a) and prob((), "</s>") == pytest.approx(end)
    assert prob((), "<unk>") == prob((), "zebra") == pytest.approx(base)
    assert prob(("<s>",), "a") == pytest.approx((3 - 1 / 3) / 3 + 1 / 3 * 1 / 3 * a)
    assert prob(("a",), "b") == pytest.approx((2 - 1 / 3) / 3 + 1 / 3 * 2 / 3 * a)
    assert prob(("a",), "</s>") == pytest.approx(1 / 3 * 2 / 3 * end)


@settings(max_examples=30, deadline=None)
@given(texts=sentences, order=st.integers(1, 4))
def test_probabilities_sum_to_one(texts, order):
    model = train_ngram(texts, order)
    for context in contexts(model, [*WORDS, "zebra"]):
        total = sum(math.exp(model.score(context, word)[0]) for word in (*model.words, "</s>", "<unk>"))
        assert total == pytest.approx(1, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(texts=sentences, order=st.integers(1, 4))
def test_arpa_round_trip(tmp_path_factory, texts, order):
    model, path = train_ngram(texts, order), tmp_path_factory.mktemp("lm") / "model.arpa"
    model.write_arpa(path)
    read = NgramModel.from_arpa(path)
    assert read.order == order and read.words == model.words
    for context in contexts(model, WORDS):
        for word in (*WORDS, "</s>", "zebra"):
            log_prob, state = model.score(context, word)
            assert read.score(context, word) == (pytest.approx(log_prob, abs=1e-5), state)


@settings(max_examples=20, deadline=None)
@given(texts=sentences, order=st.integers(1, 4))
def test_what_is_trimmed_of_a_context_changes_nothing(texts, order):
    model = train_ngram(texts, order)
    for context in contexts(model, [*WORDS, "zebra"]):
        trimmed = model.trim(context)
        assert context[len(context) - len(trimmed) :] == trimmed
        for word in (*WORDS, "</s>", "zebra"):
            assert model.score(trimmed, word)[0] == model.score(context, word)[0]


def test_what_is_trimmed_is_what_no_ngram_begins_with():
    model = train_ngram(TEXTS)
    assert model.trim(("turn", "right")) == ("turn", "right") and model.trim(("zebra", "turn")) == ("turn",)
    assert model.trim(("turn", "zebra")) == model.trim(("zebra",)) == ()


def test_training_prefers_what_it_saw():
    model = train_ngram(TEXTS)
    assert model.sentence("turn right") > model.sentence("turn stop") > model.sentence("stop stop turn")
    assert model.sentence("go left") > model.sentence("go zebra")  # words it knows, in an order it does not


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "", "there is no .data"),
        ("\\end\\", "", ":22: the file ends without"),
        ("ngram 2=3", "ngram 2=4", "promises 4 2-grams, but there are 3"),
        ("-0.3\tb </s>\n", "-0.3\tb </s>\n-0.3\tb </s>\n-0.3\tb b\n", "promises 3 2-grams, but there are 4"),
        ("ngram 3=1", "ngram 4=1", ":5: 'ngram 4=1' is out of order"),
        ("ngram 3=1", "three", ":5: expected 'ngram N=COUNT'"),
        ("\\2-grams:", "\\3-grams:", ":14: .* out of order"),
        ("ngram 3=1\n", "", ":18: .* not announced"),
        ("-0.4\ta\t-0.3", "-0.4\ta b c", ":11: expected a logarithm, 1 words"),
        ("-0.4\ta\t-0.3", "a\t-0.4", ":11: the numbers"),
        ("-0.4\ta\t-0.3", "0.4\ta", ":11: .* no logarithm"),
        ("-0.4\ta\t-0.3", "nan\ta", ":11: .* no logarithm"),
        ("<s> a b", "<s> a z", ":20: 'z' is not among the 1-grams"),
        ("ngram 1=5\nngram 2=3\nngram 3=1\n", "", "out of order"),
    ],
)
def test_broken_files(arpa, old, new, message):
    arpa.write_text(ARPA.replace(old, new, 1))
    with pytest.raises(LanguageModelError, match=message) as raised:
        NgramModel.from_arpa(arpa)
    assert str(raised.value).startswith(str(arpa)) and "\n" not in str(raised.value)


def test_missing_symbols(arpa):
    without = ARPA.replace("-0.7\t</s>\n", "").replace("-0.3\tb </s>\n", "")
    arpa.write_text(without.replace("1=5", "1=4").replace("2=3", "2=2"))
    with pytest.raises(LanguageModelError, match="</s> is not among"):
        NgramModel.from_arpa(arpa)
    arpa.write_text(ARPA.replace("-1.0\t<unk>\n", "").replace("1=5", "1=4"))
    assert decimal(NgramModel.from_arpa(arpa), (), "zebra") == pytest.approx(-99)
    arpa.write_text(ARPA.replace("<unk>", "<UNK>"))
    assert decimal(NgramModel.from_arpa(arpa), (), "zebra") == pytest.approx(-1)


def test_files_that_are_none(tmp_path):
    with pytest.raises(LanguageModelError, match=r"none\.arpa cannot be read"):
        NgramModel.from_arpa(tmp_path / "none.arpa")
    (tmp_path / "model.bin").write_bytes(b"\x1f\x8b\xff\xfe\x00")
    with pytest.raises(LanguageModelError, match=r"model\.bin is not UTF-8 text"):
        NgramModel.from_arpa(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("texts", "order", "message"),
    [([], 3, "no texts"), (["", " "], 3, "no texts"), (["a <s> b"], 3, "reserved word <s>"), (["a"], 0, "order=0")],
)
def test_texts_that_train_nothing(texts, order, message):
    with pytest.raises(LanguageModelError, match=message):
        train_ngram(texts, order)


def test_perplexity_leaves_unknown_words_out():
    model = train_ngram(TEXTS, order=2)
    (_, right), stop = (model.score(("<s>",), "turn"), model.sentence("stop"))
    after = model.score(right, "zebra")[1]
    known = model.score(("<s>",), "turn")[0] + model.score(after, "</s>")[0] + stop
    fit = measure(model, ["turn zebra", "stop"])
    assert fit.perplexity == pytest.approx(math.exp(-known / 4)) and (fit.words, fit.unknown) == (3, 1)
    assert str(fit).endswith("33.3% of 3 words unknown")
    with pytest.raises(LanguageModelError, match="no texts to measure"):
        measure(model, [])
