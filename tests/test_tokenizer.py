"""Tokenizers: round trips, the files they write, and what they refuse."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.config import TokenizerConfig
from conformer.tokenizer import BLANK, CharTokenizer, TokenizerError, load_tokenizer, train_tokenizer

KINDS = ("char", "bpe")
WORDS = ["zero", "one", "five", "eight", "go", "up", "down", "left", "right"]
STRINGS = [f"{a} {b} {c}" for a, b, c in zip(WORDS * 2, (WORDS * 2)[1:], (WORDS * 2)[2:], strict=False)]
# sentencepiece skips NUL; ▁ is reserved.
texts = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="▁\0"), max_size=12), min_size=1, max_size=6
).filter(lambda texts: any(text.split() for text in texts))


def config(kind, vocab_size=128):
    return TokenizerConfig(kind=kind, vocab_size=vocab_size)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(texts=texts)
def test_round_trip(kind, texts):
    tokenizer = train_tokenizer(config(kind), texts)
    assert tokenizer.symbols[BLANK] == "<blk>" and len(set(tokenizer.symbols)) == tokenizer.vocab_size
    for text in texts:
        ids = tokenizer.encode(text)
        assert all(0 < id < tokenizer.vocab_size for id in ids)
        assert tokenizer.decode(ids) == " ".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_looks_like_the_blank(kind):
    tokenizer = train_tokenizer(config(kind), ["<blk>", "< b l k >", "a<blk>b"])
    ids = tokenizer.encode("a <blk> b")
    assert BLANK not in ids and tokenizer.decode(ids) == "a <blk> b"


def test_characters_are_sorted_and_decode_skips_blanks():
    tokenizer = train_tokenizer(config("char"), ["to be", "or not"])
    assert tokenizer.symbols == ["<blk>", "▁", "b", "e", "n", "o", "r", "t"]
    assert tokenizer.encode(" be\t to ") == [2, 3, 1, 7, 5]
    assert tokenizer.decode([1, 0, 2, 0, 3, 1, 1, 7, 5, 0]) == "be to"
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_units_of_bytes_are_written_as_their_characters():
    """As sentencepiece's `byte_fallback` makes them, for characters that it had no room for."""
    tokenizer = CharTokenizer(["<blk>", "<0xC3>", "<0xA9>", "e", "▁"])
    assert tokenizer.decode([3, 4, 1, 2, 3]) == "e ée"
    assert tokenizer.decode_words([[3], [1, 2]]) == ["e", "é"]
    assert tokenizer.decode([1, 3]) == "\ufffde"  # half of one


def test_bpe_of_few_words_has_a_unit_for_each():
    tokenizer = train_tokenizer(config("bpe"), STRINGS)
    assert tokenizer.vocab_size <= 129
    assert {f"▁{word}" for word in WORDS} <= set(tokenizer.symbols)
    assert len(tokenizer.encode(STRINGS[0])) == 3


def test_bpe_takes_one_short_sentence_and_very_long_ones():
    assert train_tokenizer(config("bpe"), ["a"]).encode("a") == [1]
    long = "no word of it is left out " * 400
    tokenizer = train_tokenizer(config("bpe"), ["a", long])
    assert tokenizer.decode(tokenizer.encode(long)) == long.strip()


def test_bpe_vocabulary_bound():
    characters = len(set("".join(STRINGS)))
    assert train_tokenizer(config("bpe", characters), STRINGS).vocab_size == characters + 1
    with pytest.raises(TokenizerError, match=rf"tokenizer\.vocab_size={characters - 1} has no room"):
        train_tokenizer(config("bpe", characters - 1), STRINGS)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    tokenizer = train_tokenizer(config(kind), [*STRINGS, "naïve 你好"])
    tokenizer.save(tmp_path / "new")
    lines = (tmp_path / "new" / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{symbol} {id}" for id, symbol in enumerate(tokenizer.symbols)]
    for twin in (load_tokenizer(tmp_path / "new"), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.symbols == tokenizer.symbols
        assert twin.encode("naïve left 你") == tokenizer.encode("naïve left 你")


def test_one_kind_can_replace_the_other_in_a_directory(tmp_path):
    for kind in ("bpe", "char", "bpe"):
        tokenizer = train_tokenizer(config(kind), STRINGS)
        tokenizer.save(tmp_path)
        assert type(load_tokenizer(tmp_path)) is type(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind, tmp_path):
    for name in ("one", "two"):
        train_tokenizer(config(kind, 40), STRINGS).save(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_refusals(kind):
    tokenizer = train_tokenizer(config(kind), STRINGS)
    with pytest.raises(TokenizerError, match=r"'ê' \(U\+00EA\) of 'go fête'"):
        tokenizer.encode("go fête")
    with pytest.raises(TokenizerError, match="'▁'"):
        tokenizer.encode("go▁up")
    with pytest.raises(TokenizerError, match="id 999"):
        tokenizer.decode([1, 999])
    for empty in ([], ["", " \n"]):
        with pytest.raises(TokenizerError, match="no training texts"):
            train_tokenizer(config(kind), empty)
    with pytest.raises(TokenizerError, match="'a▁b' holds '▁'"):
        train_tokenizer(config(kind), ["fine", "a▁b"])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokens\.txt cannot be read .*work directory"):
        load_tokenizer(tmp_path)
    train_tokenizer(config("bpe"), STRINGS).save(tmp_path)
    model, tokens = tmp_path / "bpe.model", tmp_path / "tokens.txt"
    whole = tokens.read_text(encoding="utf-8")

    def refuses(match):
        with pytest.raises(TokenizerError, match=match):
            load_tokenizer(tmp_path)

    for content, match in [
        ("", "first '<blk>'"),
        ("a 0\nb 1\n", "first '<blk>'"),
        ("<blk> 0\na 2\n", r"tokens\.txt:2: expected 'symbol 1', found 'a 2'"),
        ("<blk> 0\n\n", r"tokens\.txt:2"),
        ("<blk> 0\na 1\na 2\n", "distinct"),
        (whole.replace("▁left", "▁lift"), "different units"),
    ]:
        tokens.write_text(content, encoding="utf-8")
        refuses(match)
    tokens.write_bytes(b"<blk> 0\n\xff 1\n")
    refuses("not UTF-8")

    tokens.write_text(whole, encoding="utf-8")
    model.write_bytes(model.read_bytes()[:50])
    refuses(r"bpe\.model is not a readable sentencepiece model")
    model.unlink()
    refuses(r"bpe\.model does not exist")
