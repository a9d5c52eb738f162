"""One spelling of texts, and one way to read their lines."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformer.decode.hotwords import HotWords, HotWordsError
from conformer.text import LEVELS, listed, normalise, read_lines, strangers
from conformer.tokenizer import CharTokenizer


def test_basic_is_lower_case_with_single_spaces():
    assert normalise("  It's\nA  TEST ") == "it's a test"
    assert normalise("It\u2019s\u00a0CAFE\u0301\u2028\ufeffna\u00adive") == "it's caf\u00e9 naive"
    assert normalise("Go, left! 7") == "go, left! 7"


def test_none_changes_white_space_alone():
    assert normalise(" It\u2019s\tA  TEST ", "none") == "It\u2019s A TEST"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Go, LEFT! (now)", "go left now"),
        ("'Tis the dogs' - o'clock '", "'tis the dogs' o'clock"),
        ("well-known e.g. caf\u00e9", "well known e g caf\u00e9"),
        ("42 dogs & 1,000 cats", "forty two dogs and one thousand cats"),
        ("0 10 13 20 100 110 999", "zero ten thirteen twenty one hundred one hundred ten nine hundred ninety nine"),
        ("1000001", "one million one"),
        ("007", "zero zero seven"),
        ("5551234567890123", "five five five one two three four five six seven eight nine zero one two three"),
        (
            "1st 2nd 3rd 8th 12th 20th 21st 100th",
            "first second third eighth twelfth twentieth twenty first one hundredth",
        ),
        ("3.14 and 50%", "three point one four and fifty percent"),
        ("$1 $5 \u00a32.50 \u20ac3.00", "one dollar five dollars two pounds and fifty cents three euros"),
        ("at 10:30, x2.", "at ten thirty x two"),
    ],
)
def test_english_is_what_is_spoken(text, spoken):
    assert normalise(text, "english") == spoken


@given(st.text(max_size=80), st.sampled_from(LEVELS))
def test_normalising_twice_is_normalising_once(text, level):
    once = normalise(text, level)
    assert normalise(once, level) == once
    assert once == " ".join(once.split())
    if level != "none":
        assert once == unicodedata.normalize("NFC", once)
    if level == "english":
        assert not set(once) & set("0123456789.,!?-&%$")


@given(
    st.lists(st.text(st.characters(exclude_characters="\0\r\n\ufeff", codec="utf-8"), max_size=20), min_size=1),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_lines_end_at_line_feeds_alone(tmp_path_factory, lines, end, mark):
    path = tmp_path_factory.mktemp("lines") / "text"
    file = (mark + "".join(line + end for line in lines)).encode()
    path.write_bytes(file + file)  # as files that are put behind each other
    assert list(read_lines(path, ValueError)) == list(enumerate(lines + lines, 1))


def test_what_holds_zeros_is_no_text(tmp_path):
    """Such as UTF-16 without a byte-order mark, which is UTF-8 too."""
    (tmp_path / "text").write_bytes("one\ntwo\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"text:1: byte 2 is 0, which no text holds.*iconv"):
        list(read_lines(tmp_path / "text", ValueError))


def test_what_is_not_in_an_alphabet_is_counted():
    counts = strangers(["\u00e9t\u00e9", "a7"], set("at"))
    assert listed(counts) == "'\u00e9' (U+00E9) 2 times, '7' once"
    assert listed(strangers(["bcdefgh"], set())).endswith("and 2 others")


def test_hot_words_are_spelled_as_transcripts_are():
    tokenizer = CharTokenizer(["<blk>", "▁", "'", "a", "b"])
    words = HotWords(["AB \u2019A"], tokenizer, 1.0)
    gained, state = 0.0, words.start
    for id in tokenizer.encode("ab 'a"):
        gain, state = words.step(state, id)
        gained += gain
    assert gained == 5.0
    with pytest.raises(HotWordsError, match="'x'"):
        HotWords(["AX"], tokenizer, 1.0)
