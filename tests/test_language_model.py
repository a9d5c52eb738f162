"""N-gram models: values worked out by hand, sums over the vocabulary, files in and out, and what they refuse."""

import gzip
import lzma
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conformer.language.arpa import read_arpa, write_arpa
from conformer.language.compact import is_compact, read_compact, write_compact
from conformer.language.estimate import discounts, train_ngram
from conformer.language.mixture import best_weights, mix
from conformer.language.ngrams import ROOT
from conformer.language.perplexity import measure
from conformer.language.prune import prune
from conformer.language.texts import Overlap, sentences, text_files
from conformer.language.vocabulary import LanguageModelError

TEXTS = ["turn right", "turn left now", "turn right now", "go right", "stop"]
WORDS = ["a", "b", "c", "d"]


def sentences_of(words):
    return st.lists(st.lists(st.sampled_from(words), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8)


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


def scored(model, context, word):
    """ln p(word | context), and the context behind it."""
    log_probs, contexts = model.score(np.array([context]), model.vocabulary.ids([word]))
    return float(log_probs[0]), int(contexts[0])


def decimal(model, words, word):
    """log10 p(word | words)."""
    return scored(model, model.context(words), word)[0] / math.log(10)


def contexts(model):
    """Every state that words can lead to in up to three steps."""
    states, ids = {model.start, ROOT}, np.arange(1, len(model.vocabulary))
    for _ in range(3):
        states |= {int(after) for state in states for after in model.score(np.full(len(ids), state), ids)[1]}
    return states


def check_sums(model, tolerance=1e-9):
    """Asserts that the probabilities of all words, `</s>` and `<unk>` sum to 1 behind every context."""
    ids = np.arange(1, len(model.vocabulary))
    for context in contexts(model):
        assert np.exp(model.score(np.full(len(ids), context), ids)[0]).sum() == pytest.approx(1, abs=tolerance)


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(ARPA)
    return path


def test_longest_listed_ngram_and_back_off(arpa):
    model = read_arpa(arpa)
    assert model.order == 3 and model.words == ["a", "b"] and model.starts == [0, 1, 6, 9, 10]
    log_prob, state = scored(model, model.start, "a")
    assert log_prob == pytest.approx(-0.2 * math.log(10))
    assert scored(model, state, "b")[0] == pytest.approx(-0.05 * math.log(10))
    behind = scored(model, state, "a")[0]  # neither <s> a a nor a a is listed
    assert behind == pytest.approx((-0.25 - 0.3 - 0.4) * math.log(10))
    assert decimal(model, ["a", "b"], "</s>") == pytest.approx(-0.125 - 0.3)
    assert decimal(model, ["b", "b"], "a") == pytest.approx(0.1 - 0.4)  # nothing backs off from the unlisted b b
    unknown, state = scored(model, model.start, "zebra")
    assert unknown == pytest.approx((-0.5 - 1.0) * math.log(10)) and state == ROOT
    assert model.sentence("a b") == pytest.approx((-0.2 - 0.05 - 0.125 - 0.3) * math.log(10))


def test_ngrams_whose_beginnings_are_not_listed(arpa):
    """The beginning is as probable as it was, and all else too."""
    arpa.write_text(ARPA.replace("-0.2\t<s> a\t-0.25\n", "").replace("ngram 2=3", "ngram 2=2"))
    model = read_arpa(arpa)
    log_prob, state = scored(model, model.start, "a")
    assert log_prob == pytest.approx((-0.5 - 0.4) * math.log(10))
    assert scored(model, state, "b")[0] == pytest.approx(-0.05 * math.log(10))
    assert scored(model, state, "a")[0] == pytest.approx((-0.3 - 0.4) * math.log(10))


def test_kneser_ney_by_hand():
    """Bigrams of "a b", "a b", "a c": n_1 = 2 (a c, c </s>), n_2 = 2 (a b, b </s>), so D = 2 / (2 + 2 * 2) = 1/3."""
    model = train_ngram(["a b", "a b", "a c"], order=2)

    def prob(words, word):
        return 10 ** decimal(model, words, word)

    # Distinct words before a, b, c and </s>: 1, 1, 1 and 2, so n_1 = 3, n_2 = 1, D = 3/5 and V = 5 with <unk>.
    base = 3 / 5 * 4 / 5 / 5
    a, end = (1 - 3 / 5) / 5 + base, (2 - 3 / 5) / 5 + base
    assert prob([], "a") == pytest.approx(a) and prob([], "</s>") == pytest.approx(end)
    assert prob([], "<unk>") == prob([], "zebra") == pytest.approx(base)
    assert math.exp(scored(model, model.start, "a")[0]) == pytest.approx((3 - 1 / 3) / 3 + 1 / 3 * 1 / 3 * a)
    assert prob(["a"], "b") == pytest.approx((2 - 1 / 3) / 3 + 1 / 3 * 2 / 3 * a)
    assert prob(["a"], "</s>") == pytest.approx(1 / 3 * 2 / 3 * end)


def test_discounts_by_hand():
    """n_1 to n_4 are 40, 20, 10, 5: Y = 40 / 80."""
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 2])
    assert discounts(counts) == pytest.approx([0, 1 - 0.5, 2 - 3 * 0.5 * 10 / 20, 3 - 4 * 0.5 * 5 / 10])


@settings(max_examples=30)
@given(texts=sentences_of(WORDS), order=st.integers(1, 4), least=st.integers(1, 2), limit=st.sampled_from([None, 2]))
def test_probabilities_sum_to_one(texts, order, least, limit):
    """Checks the sums of models without rare n-grams and with unlisted words, too."""
    model = train_ngram(texts, order, [least] * order, limit)
    assert limit is None or len(model.words) <= limit
    check_sums(model)


@example(texts=["a a b", "a b a a b"], order=4, threshold=1e-3)  # back-offs on both sides of zero, and zeros
@settings(max_examples=20)
@given(texts=sentences_of(WORDS), order=st.integers(1, 4), threshold=st.sampled_from([1e-6, 1e-3, 1e-1]))
def test_files_hold_the_model(tmp_path_factory, texts, order, threshold):
    model, folder = prune(train_ngram(texts, order), threshold), tmp_path_factory.mktemp("lm")
    write_arpa(model, folder / "model.arpa")
    write_compact(model, folder / "model.lm", {"trained": "on these"})
    read, (compact, about) = read_arpa(folder / "model.arpa"), read_compact(folder / "model.lm")
    assert about == {"trained": "on these"} and is_compact(folder / "model.lm")
    assert read.starts == compact.starts == model.starts and read.words == compact.words == model.words
    log_probs = model.log_probs(np.arange(1, model.starts[-1]))
    step = (np.ptp(log_probs[log_probs > -50]) + np.ptp(model.backoffs(np.arange(model.starts[-2])))) / 255
    ids = np.arange(1, len(model.vocabulary))
    for context in contexts(model):
        log_probs, states = model.score(np.full(len(ids), context), ids)
        for other, tolerance in ((read, 1e-5), (compact, order * step)):
            found = other.score(np.full(len(ids), context), ids)
            np.testing.assert_allclose(found[0], log_probs, atol=tolerance)
            np.testing.assert_array_equal(found[1], states)


def test_what_is_trimmed_is_what_no_ngram_begins_with():
    model = train_ngram(TEXTS)
    assert model.context(["zebra", "turn"]) == model.context(["turn"]) != ROOT
    assert model.context(["turn", "right"]) != model.context(["right"])
    assert model.context(["turn", "zebra"]) == model.context(["zebra"]) == ROOT


@settings(max_examples=20)
@given(texts=sentences_of(WORDS), order=st.integers(1, 4), threshold=st.sampled_from([1e-6, 1e-3, 1e-1]))
def test_a_pruned_model_sums_to_one(texts, order, threshold):
    model = train_ngram(texts, order)
    smaller = prune(model, threshold)
    assert smaller.starts[-1] <= model.starts[-1] and smaller.words == model.words
    check_sums(smaller, 1e-6)


def test_pruning_drops_what_it_loses_least():
    texts = [*["turn left now"] * 8, *["turn right now"] * 8, "go left", "left go", "now turn", "right left"] * 2
    model = train_ngram(texts, 2)
    small = prune(model, 3e-3)
    assert small.starts[-1] < model.starts[-1]
    assert measure(small, texts).perplexity < 1.1 * measure(model, texts).perplexity
    assert small.child(np.array([small.context(["turn"])]), small.vocabulary.ids(["left"])) >= 0


@settings(max_examples=20)
@given(first=sentences_of(WORDS), second=sentences_of([*WORDS[2:], "e"]), weight=st.floats(0.1, 0.9))
def test_a_mixture_is_the_mean_of_its_parts(first, second, weight):
    models = train_ngram(first, 3), train_ngram(second, 2)
    model = mix(models, (weight, 1 - weight))
    check_sums(model, 1e-6)
    words = [word for word in model.words if all(word in part.vocabulary for part in models)]
    for history in ([], *([word] for word in words)):
        if all(len(part.begin) and part.context(history) for part in models) or not history:
            for word in (*words, "</s>"):
                listed = model.child(np.array([model.context(history)]), model.vocabulary.ids([word]))[0] >= 0
                parts = [math.exp(scored(part, part.context(history), word)[0]) for part in models]
                if listed:
                    expected = weight * parts[0] + (1 - weight) * parts[1]
                    assert math.exp(scored(model, model.context(history), word)[0]) == pytest.approx(expected)


def test_weights_go_to_the_model_that_knows_the_texts():
    commands, letters = train_ngram(TEXTS), train_ngram(["a b", "b a c", "turn a b"])
    towards, away = best_weights([commands, letters], TEXTS), best_weights([letters, commands], ["a b c", "b a"])
    assert towards[0] > 0.9 and away[0] > 0.9 and towards.sum() == pytest.approx(1)


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
        read_arpa(arpa)
    assert str(raised.value).startswith(str(arpa)) and "\n" not in str(raised.value)


def test_missing_symbols(arpa):
    without = ARPA.replace("-0.7\t</s>\n", "").replace("-0.3\tb </s>\n", "")
    arpa.write_text(without.replace("1=5", "1=4").replace("2=3", "2=2"))
    with pytest.raises(LanguageModelError, match="</s> is not among"):
        read_arpa(arpa)
    arpa.write_text(ARPA.replace("-1.0\t<unk>\n", "").replace("1=5", "1=4"))
    assert decimal(read_arpa(arpa), [], "zebra") == pytest.approx(-99)
    arpa.write_text(ARPA.replace("<unk>", "<UNK>"))
    assert decimal(read_arpa(arpa), [], "zebra") == pytest.approx(-1)


def test_files_that_are_none(tmp_path):
    with pytest.raises(LanguageModelError, match=r"none\.arpa cannot be read"):
        read_arpa(tmp_path / "none.arpa")
    (tmp_path / "model.bin").write_bytes(b"\x1f\x8b\xff\xfe\x00")
    with pytest.raises(LanguageModelError, match=r"model\.bin is not UTF-8 text"):
        read_arpa(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("texts", "order", "message"),
    [([], 3, "no texts"), (["", " "], 3, "no texts"), (["a <s> b"], 3, "reserved word <s>"), (["a"], 0, "order=0")],
)
def test_texts_that_train_nothing(texts, order, message):
    with pytest.raises(LanguageModelError, match=message):
        train_ngram(texts, order)


def test_perplexity_leaves_unknown_words_out():
    model = train_ngram(TEXTS, order=2)
    turn, right = scored(model, model.start, "turn")
    unknown, after = scored(model, right, "zebra")
    known = turn + scored(model, after, "</s>")[0] + model.sentence("stop")
    fit = measure(model, ["turn zebra", "stop"])
    assert fit.perplexity == pytest.approx(math.exp(-known / 4)) and (fit.words, fit.unknown) == (3, 1)
    letters = len(set("turnzebrastop")) + 1  # as likely as each other, with the end of a word
    nats = -known - unknown + 6 * math.log(letters)
    assert fit.bits == pytest.approx(nats / math.log(2) / (len("turn zebra ") + 1 + len("stop ") + 1))
    assert "33.3% of 3 words unknown" in str(fit)
    with pytest.raises(LanguageModelError, match="no texts to measure"):
        measure(model, [])


def test_texts_of_folders_and_compressed_files(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.txt").write_text("One\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("two\n")
    with lzma.open(tmp_path / "more" / "c.txt.xz", "wb") as file:
        file.write(b"Three  four\n")
    (tmp_path / "LICENSE.md").write_text("no text")
    files = text_files([tmp_path, tmp_path / "a.txt"])
    assert list(sentences(files, "basic", print)) == ["one", "two", "three four", "one"]
    whole = (tmp_path / "b.txt.gz").read_bytes()
    damaged = {"d.txt.gz": whole[:-9], "e.txt.gz": b"plain", "f.txt.xz": b"plain", "g.txt.bz2": b"plain"}
    damaged["h.txt.gz"] = gzip.compress(b"two\n")[:10] + b"\7" * 20  # its deflated data, not its header
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LanguageModelError, match=f"{name} is damaged"):
            list(sentences([tmp_path / name], "basic", print))
    (tmp_path / "i.txt").write_text(" \n\n")
    with pytest.raises(LanguageModelError, match=r"i\.txt: no word in it"):
        list(sentences([tmp_path / "i.txt"], "basic", print))
    (tmp_path / "none").mkdir()
    with pytest.raises(LanguageModelError, match="none holds no text"):
        text_files([tmp_path / "none"])


def test_texts_that_share_rows_of_words_with_others_are_counted():
    overlap = Overlap({"dev": ["one two three four five six seven eight nine", "go left"], "test": ["left"]})
    texts = [
        "zero two three four five six seven eight nine ten",
        "one two three four five six seven",
        "go left",
        "left",
    ]
    assert list(overlap.watched(texts)) == texts and overlap.found == {"dev": 2}


def test_a_damaged_compact_file_is_one_error(tmp_path):
    model = train_ngram(TEXTS)
    write_compact(model, tmp_path / "whole.lm")
    whole, begin = (tmp_path / "whole.lm").read_bytes(), model.begin.tobytes()
    assert whole.count(begin) == 1
    changed = [
        whole.replace(begin, begin[:index] + b"\x7f" + begin[index + 1 :]) for index in (1, len(begin) // 8 * 4 + 3)
    ]
    cut = [whole[:-5], whole[:100], b""]
    for index, content in enumerate([*changed, *cut, whole.replace(b"n-grams 1", b"n-grams 9")]):
        (tmp_path / f"{index}.lm").write_bytes(content)
        with pytest.raises(LanguageModelError, match=f"{index}.lm is damaged"):
            read_compact(tmp_path / f"{index}.lm")
    with pytest.raises(LanguageModelError, match=r"none\.lm cannot be read"):
        read_compact(tmp_path / "none.lm")
    assert not is_compact(tmp_path / "none.lm")
