"""Sounds as units: dictionaries, the tokenizer that has one, and what it writes."""

import pickle
import sys

import pytest

from conformer import espeak
from conformer.config import TokenizerConfig
from conformer.decode.hotwords import HotWords, HotWordsError
from conformer.pronunciation import PRONUNCIATIONS_FILE, Dictionary, PronunciationError
from conformer.tokenizer import BLANK, BPE_FILE, CharTokenizer, SoundTokenizer, load_tokenizer, train_tokenizer

TEXTS = ["the night was two hours long", "two knights and the queen", "two by two", "night after night", "knight"]
CONFIG = TokenizerConfig(kind="sounds", vocab_size=60)


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("espeakng_loader", reason="pronunciation needs pip install -e '.[demo]'")
    tokenizer = train_tokenizer(CONFIG, TEXTS)
    assert isinstance(tokenizer, SoundTokenizer)
    return tokenizer


def test_words_are_pronounced_without_stress_length_and_variants():
    pytest.importorskip("espeakng_loader", reason="pronunciation needs pip install -e '.[demo]'")
    words = {"night": "naɪt", "knight": "naɪt", "better": "bɛtɜ", "button": "bʌtən", "seven": "sɛvən", "loch": "lɑk"}
    assert {word: espeak.pronouncer().pronounce(word) for word in words} == words
    assert espeak.pronouncer().pronounce("yes, no.") == "jɛsnoʊ"  # clause after clause


def test_texts_become_sounds_and_words_again(tokenizer):
    assert tokenizer.spell("two knights") == "tu naɪts" and tokenizer.alphabet.issuperset("tu naɪts")
    ids = tokenizer.encode("the queen and two knights")
    assert BLANK not in ids and tokenizer.decode(ids) == "the queen and two knights"
    groups = [tokenizer.encode("queen"), [BLANK], [], tokenizer.encode("two")]
    assert tokenizer.decode_words(groups) == ["queen", "", "", "two"]


def test_the_more_frequent_of_those_that_sound_alike_is_written(tokenizer):
    assert tokenizer.decode(tokenizer.encode("knight")) == "night"
    other = tokenizer.choosing(lambda choices: [choice[-1] for choice in choices])
    assert other.decode(tokenizer.encode("night")) == "knight"
    assert tokenizer.decode(tokenizer.encode("night")) == "night"


def test_sounds_of_no_word_are_written_as_the_nearest_word():
    dictionary = Dictionary([("night", "naɪt"), ("nice", "naɪs"), ("knight", "naɪt"), ("lights", "laɪts")])
    assert dictionary.words("naɪk") == ["night", "knight"]  # as near as "nice", and listed first
    assert dictionary.words("naɪts") == ["night", "knight"]
    assert dictionary.words("laɪt") == ["night", "knight"]


def test_sounds_like_no_word_are_written_in_letters():
    dictionary = Dictionary([("thing", "θɪŋ")])
    assert dictionary.words("ðʌŋ") == ["thung"]  # two of three sounds differ
    assert dictionary.words("ðɪŋ") == ["thing"]
    assert Dictionary().words("ðɪŋ") == ["thing"]  # no word at all


def test_words_that_sound_so_are_found_without_rapidfuzz_and_others_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    dictionary = Dictionary([("thing", "θɪŋ")])
    assert dictionary.words("θɪŋ") == ["thing"]
    with pytest.raises(PronunciationError, match="pip install rapidfuzz"):
        dictionary.words("ðɪŋ")


def test_words_that_are_not_listed_are_pronounced_and_known_from_then_on(tokenizer):
    assert tokenizer.spellings("night's") == ["naɪts"]
    assert tokenizer.decode(tokenizer.encode("kites")) == "kites"


def test_a_dictionary_lists_what_it_is_told_to(tokenizer, tmp_path):
    dictionary = Dictionary([("two", "tu")])
    dictionary.sounds("night")
    dictionary.extend(["two", "knight", "too", "night"])
    dictionary.save(tmp_path)
    lines = (tmp_path / PRONUNCIATIONS_FILE).read_text(encoding="utf-8").split("\n")
    assert lines == ["two\ttu", "knight\tnaɪt", "too\ttu", "night\tnaɪt", ""]
    assert dictionary.words("tu") == ["two", "too"]


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for twin in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(twin, SoundTokenizer) and twin.symbols == tokenizer.symbols
        assert twin.encode("the long night") == tokenizer.encode("the long night")
    assert (tmp_path / PRONUNCIATIONS_FILE).read_text(encoding="utf-8").startswith("two\ttu\n")
    train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=40), TEXTS).save(tmp_path)
    assert not isinstance(load_tokenizer(tmp_path), SoundTokenizer)
    tokenizer.save(tmp_path)
    CharTokenizer(["<blk>", "a"]).save(tmp_path)
    assert not (tmp_path / BPE_FILE).exists() and not (tmp_path / PRONUNCIATIONS_FILE).exists()


def test_without_espeak_the_dictionary_is_all_there_is(tokenizer, tmp_path, monkeypatch):
    tokenizer.save(tmp_path)

    def missing():
        raise espeak.EspeakError("not installed")

    monkeypatch.setattr("conformer.pronunciation.pronouncer", missing)
    alone = load_tokenizer(tmp_path)
    assert alone.spellings("queen") == ["kwin"] and alone.spellings("castle") == []
    with pytest.raises(
        PronunciationError, match=r"'castle' is not in pronunciations\.tsv: add a line for it, or install"
    ):
        alone.encode("the castle")
    with pytest.raises(HotWordsError, match="hot words 'castle' cannot be spelled: 'castle' is not in"):
        HotWords(["castle"], alone, 1.0)
    with pytest.raises(espeak.EspeakError):
        train_tokenizer(CONFIG, TEXTS)


@pytest.mark.parametrize("line", ["word", "two words\ttu", "word\t", "\ttu", "word\ttu tu"])
def test_a_line_that_is_no_pronunciation_is_named(tmp_path, line):
    (tmp_path / PRONUNCIATIONS_FILE).write_text(f"two\ttu\n{line}\n", encoding="utf-8")
    with pytest.raises(PronunciationError, match=r"pronunciations\.tsv:2: expected a word, a tab and its sounds"):
        Dictionary.load(tmp_path)
