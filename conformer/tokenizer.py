"""Text units: characters, byte-pair units of letters, or byte-pair units of sounds, behind one interface.

Id 0 is CTC's blank, written `<blk>`; text units start at 1. A space is written `▁` in symbols, so that every symbol is
one word of `tokens.txt`, the file that sherpa-onnx reads. White space in texts is collapsed; letter case is kept where
the units have small letters.
"""

import abc
import copy
import io
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from conformer import system
from conformer.config import TokenizerConfig
from conformer.pronunciation import PRONUNCIATIONS_FILE, Chooser, Dictionary, PronunciationError, first_of_each
from conformer.text import normalise

BLANK = 0
BLANK_SYMBOL = "<blk>"
SPACE_SYMBOL = "▁"
TOKENS_FILE = "tokens.txt"
BPE_FILE = "bpe.model"
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a unit of sentencepiece's byte_fallback: part of a character in UTF-8


class TokenizerError(ValueError):
    """A text, or a stored tokenizer, that cannot be used; the message names it and the remedy."""


class Tokenizer(abc.ABC):
    """Maps text to ids and back. `symbols[id]` is the symbol of an id; `alphabet` holds the characters of units.

    `level` is the level of `normalise` that the training texts went through: whatever is compared with what a
    recogniser writes is spelled so.
    """

    def __init__(self, symbols: Sequence[str]):
        self.level = "basic"
        self.symbols = list(symbols)
        self._spelled = [bytes.fromhex(m[1]) if (m := _BYTE.fullmatch(s)) else s.encode() for s in self.symbols]
        self.alphabet = {" " if symbol == SPACE_SYMBOL else symbol for symbol in symbols if len(symbol) == 1}
        self._capitals = any(map(str.isupper, self.alphabet)) and not any(map(str.islower, self.alphabet))

    @property
    def vocab_size(self) -> int:
        """Number of units, blank included."""
        return len(self.symbols)

    def normalise(self, text: str) -> str:
        """A text in the spelling of the training texts."""
        return normalise(text, self.level)

    def spell(self, text: str) -> str:
        """A text in the characters of units, which are letters unless a subclass says otherwise.

        Capitals where there is no small letter among them, as in public checkpoints; texts are in small letters here.
        """
        return self._cased(_collapse(text))

    def spellings(self, word: str) -> list[str]:
        """The ways to spell a word in the characters of units; none where that is not known."""
        return [self._cased(word)]

    def _cased(self, text: str) -> str:
        if not self._capitals:
            return text
        return "".join(letter if letter in self.alphabet else letter.upper() for letter in text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, none of them BLANK. Raises TokenizerError for a character that training did not see."""
        text = self.spell(text)
        for character in text:
            if character not in self.alphabet:
                raise TokenizerError(
                    f"character {character!r} (U+{ord(character):04X}) of {text!r} is not among the "
                    f"{len(self.alphabet)} characters of the training texts: "
                    "change the text, or train a tokenizer on texts that have it"
                )
        return self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, such as CTC emits them after merging; blanks are skipped, white space is collapsed.

        Raises TokenizerError for an id that is not in the vocabulary.
        """
        return " ".join(self.write(self._join(ids).split()))

    def decode_words(self, groups: Iterable[Iterable[int]]) -> list[str]:
        """The text of each group of ids, which spell a word each, in a row; "" where they spell none."""
        spelled = [self._join(ids) for ids in groups]
        written = iter(self.write([word for word in spelled if word]))
        return [next(written) if word else "" for word in spelled]

    def write(self, words: list[str]) -> list[str]:
        """Words that are spelled in the characters of units, as they are written."""
        return words

    def _join(self, ids: Iterable[int]) -> str:
        """Returns what ids spell, in the characters of the units. Raises TokenizerError for an id out of range."""
        pieces = []
        for id in ids:
            if not 0 <= id < self.vocab_size:
                raise TokenizerError(
                    f"id {id} is not in the vocabulary of {self.vocab_size}: were model and tokenizer trained together?"
                )
            if id != BLANK:
                pieces.append(self._spelled[id])
        return _collapse(b"".join(pieces).decode(errors="replace").replace(SPACE_SYMBOL, " "))

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes `tokens.txt` (a line a unit: symbol, space, id) and what else `load_tokenizer` needs."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lines = (f"{symbol} {id}\n" for id, symbol in enumerate(self.symbols))
        system.write_text(directory / TOKENS_FILE, "".join(lines))

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Encodes a collapsed text whose characters are all known."""


class CharTokenizer(Tokenizer):
    """One unit a character."""

    def __init__(self, symbols: Sequence[str]):
        super().__init__(symbols)
        self._ids = {symbol.replace(SPACE_SYMBOL, " "): id for id, symbol in enumerate(self.symbols)}

    def _encode(self, text: str) -> list[int]:
        return [self._ids[character] for character in text]

    def save(self, directory: str | pathlib.Path) -> None:
        super().save(directory)
        _remove(directory, BPE_FILE, PRONUNCIATIONS_FILE)


class BpeTokenizer(Tokenizer):
    """Byte-pair units of sentencepiece (Sennrich et al., 2016). A unit that starts a word starts with `▁`.

    The model's piece 0, its unknown unit, is named `<blk>`: encoding never yields it, so its id serves as CTC's blank,
    and ids are the same in `bpe.model` and `tokens.txt`.
    """

    def __init__(self, model: bytes):
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        super().__init__([self._processor.IdToPiece(id) for id in range(self._processor.GetPieceSize())])

    def _encode(self, text: str) -> list[int]:
        return self._processor.Encode(text)

    def serialised(self) -> bytes:
        """The model, as the constructor takes it."""
        return self._processor.serialized_model_proto()

    def save(self, directory: str | pathlib.Path) -> None:
        super().save(directory)
        with system.replacing(pathlib.Path(directory) / BPE_FILE) as partial:
            partial.write_bytes(self.serialised())
        _remove(directory, PRONUNCIATIONS_FILE)


class SoundTokenizer(BpeTokenizer):
    """Byte-pair units of sounds, and the dictionary that turns words into sounds and back."""

    def __init__(self, model: bytes, dictionary: Dictionary):
        super().__init__(model)
        self.dictionary = dictionary
        self._choose: Chooser = first_of_each

    def choosing(self, chooser: Chooser) -> "SoundTokenizer":
        """Returns a tokenizer in which `chooser` chooses among words that sound alike, not their frequency."""
        other = copy.copy(self)
        other._choose = chooser
        return other

    def spell(self, text: str) -> str:
        """A text in sounds. Raises PronunciationError for a word that cannot be pronounced."""
        return self.dictionary.spell(text)

    def spellings(self, word: str) -> list[str]:
        """The pronunciations of a word; none where it is not listed and espeak-ng is not installed."""
        return self.dictionary.sounds(word)

    def write(self, words: list[str]) -> list[str]:
        """Returns words for sounds, chosen among those that sound alike."""
        return self._choose([self.dictionary.words(sounds) for sounds in words])

    def save(self, directory: str | pathlib.Path) -> None:
        super().save(directory)
        self.dictionary.save(pathlib.Path(directory))


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Derives the units from training texts; the same texts always give the same units.

    Raises TokenizerError when the texts hold no character, hold the reserved `▁`, or have more distinct characters
    than `config.vocab_size` has room for ("bpe" and "sounds"). Raises EspeakError where it is not installed ("sounds").
    """
    texts = [collapsed for text in texts if (collapsed := _collapse(text))]
    if not texts:
        raise TokenizerError("there are no training texts: check data.source and data.train_splits")
    characters = set().union(*texts)
    if SPACE_SYMBOL in characters:
        text = next(text for text in texts if SPACE_SYMBOL in text)
        raise TokenizerError(f"training text {text!r} holds {SPACE_SYMBOL!r}, which stands for a space: remove it")
    if config.kind == "char":
        return CharTokenizer([BLANK_SYMBOL, *(c.replace(" ", SPACE_SYMBOL) for c in sorted(characters))])
    if config.kind == "sounds":
        dictionary = Dictionary.of(texts)
        return SoundTokenizer(_byte_pairs(config, [dictionary.spell(text) for text in texts]), dictionary)
    return BpeTokenizer(_byte_pairs(config, texts))


def _byte_pairs(config: TokenizerConfig, texts: list[str]) -> bytes:
    """The sentencepiece model of texts."""
    characters = set().union(*texts)

    needed = len(characters | {" "})  # sentencepiece puts a space before every word, the first included
    if config.vocab_size < needed:
        raise TokenizerError(
            f"tokenizer.vocab_size={config.vocab_size} has no room for the {needed} characters of the training texts: "
            "raise it, or normalise the texts"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=config.vocab_size + 1,  # and the blank
        hard_vocab_limit=False,  # few words cannot fill a vocabulary
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=1 << 30,  # bytes; longer ones would be left out silently
        unk_id=BLANK,
        unk_piece=BLANK_SYMBOL,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def load_tokenizer(directory: str | pathlib.Path, level: str = "basic") -> Tokenizer:
    """Reads what `Tokenizer.save` wrote. Raises TokenizerError for a file that is missing or broken.

    Args:
        level: of `normalise`, which config.json and the cards of artefacts hold.
    """
    tokenizer = _load(pathlib.Path(directory))
    tokenizer.level = level
    return tokenizer


def _load(directory: pathlib.Path) -> Tokenizer:
    symbols = _read_symbols(directory / TOKENS_FILE)
    path = directory / BPE_FILE
    if not path.exists():
        if long := [symbol for symbol in symbols[1:] if len(symbol) != 1]:
            raise TokenizerError(
                f"{path} does not exist, but unit {long[0]!r} of {directory / TOKENS_FILE} is not a character: "
                "restore it or train again"
            )
        return CharTokenizer(symbols)
    try:
        model = path.read_bytes()
        sounds = (directory / PRONUNCIATIONS_FILE).exists()
        tokenizer = SoundTokenizer(model, Dictionary.load(directory)) if sounds else BpeTokenizer(model)
    except PronunciationError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # ValueError: a unit that is not UTF-8
        raise TokenizerError(
            f"{path} is not a readable sentencepiece model ({error}): restore it or train again"
        ) from None
    if tokenizer.symbols != symbols:
        raise TokenizerError(f"{path} and {directory / TOKENS_FILE} list different units: restore both or train again")
    return tokenizer


def _read_symbols(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise TokenizerError(
            f"{path} cannot be read ({error.strerror}): is {path.parent} the work directory of a training run?"
        ) from None
    except UnicodeDecodeError:
        raise TokenizerError(f"{path} is not UTF-8 text: restore it or train again") from None
    if lines[-1] == "":
        lines.pop()
    symbols = []
    for number, line in enumerate(lines):
        symbol, _, id = line.partition(" ")
        if not symbol or id != str(number):
            raise TokenizerError(f"{path}:{number + 1}: expected 'symbol {number}', found {line!r}: restore the file")
        symbols.append(symbol)
    if not symbols or symbols[BLANK] != BLANK_SYMBOL or len(set(symbols)) != len(symbols):
        raise TokenizerError(f"{path}: units must be distinct and the first {BLANK_SYMBOL!r}: restore the file")
    return symbols


def _remove(directory: str | pathlib.Path, *names: str) -> None:
    """Files left behind by another run would make `load_tokenizer` read the wrong kind."""
    for name in names:
        (pathlib.Path(directory) / name).unlink(missing_ok=True)


def _collapse(text: str) -> str:
    return " ".join(text.split())
