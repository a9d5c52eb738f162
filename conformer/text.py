"""Reads and spells text: transcripts, texts for language models, vocabularies and hot words, all in the same way.

What a recogniser was trained to write has one spelling: whatever is compared with it goes through `normalise`.
"""

import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import IO

LEVELS = ("none", "basic", "english")
_BOM = "\ufeff"
_INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad]")  # byte-order mark, zero-width spaces, soft hyphen
_APOSTROPHES = re.compile("[\u2018\u2019\u02bc\uff07]")
_NUMBER = re.compile(r"(?<![\w.])([$£€]?)([0-9]+(?:,[0-9]{3})+|[0-9]+)(?:\.([0-9]+))?(st|nd|rd|th|%)?(?!\w)")
_DIGITS = re.compile("[0-9]+")
_CURRENCIES = {"$": "dollar", "£": "pound", "€": "euro"}
_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_THOUSANDS = ("", "thousand", "million", "billion", "trillion")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_SHOWN = 5  # characters or words that a message lists


def normalise(text: str, level: str = "basic") -> str:
    """The spelling that recognisers are trained on.

    Args:
        level: "none" collapses white space. "basic" also composes letters and their accents (Unicode's NFC), lowers
            case, makes all apostrophes `'`, and removes characters that cannot be seen. "english" also spells numbers
            and drops punctuation other than apostrophes.
    """
    if level == "none":
        return " ".join(text.split())
    text = unicodedata.normalize("NFC", text).lower()
    text = _APOSTROPHES.sub("'", visible(text))
    if level == "english":
        text = _NUMBER.sub(_say, text).replace("&", " and ")
        text = _strip(_DIGITS.sub(lambda match: f" {_cardinal(match[0])} ", text))
    return " ".join(unicodedata.normalize("NFC", text).split())


def visible(text: str) -> str:
    """A text without the characters that cannot be seen: byte-order marks, zero-width spaces, soft hyphens."""
    return _INVISIBLE.sub("", text)


def read_lines(
    path: pathlib.Path, error: type[ValueError], opener: Callable[..., IO] = open
) -> Iterator[tuple[int, str]]:
    r"""The lines of a UTF-8 file with their numbers, from 1; `\n` or `\r\n` ends one, and nothing else does.

    A byte-order mark is left out, of each file that was put behind another; `opener` may decompress. Raises `error`,
    which names file and line, for a file that is not UTF-8, holds zeros as no text does, or whose lines end in another
    way. Raises OSError for one that cannot be read.
    """
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as problem:
                encoding = "UTF-16" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
                raise error(
                    f"{path}:{number}: byte {problem.start + 1} is not UTF-8: convert the file, such as with "
                    f"iconv -f {encoding} -t UTF-8"
                ) from None
            if (zero := line.find(0)) >= 0:
                raise error(
                    f"{path}:{number}: byte {zero + 1} is 0, which no text holds: convert the file, such as with iconv "
                    "-f UTF-16LE -t UTF-8, or restore it"
                )
            text = text.removesuffix("\n").removesuffix("\r").removeprefix(_BOM)
            if "\r" in text:
                raise error(
                    f"{path}:{number}: a carriage return is no end of a line: convert the file's line ends to LF"
                )
            yield number, text


def strangers(texts: Iterable[str], alphabet: Collection[str]) -> Counter[str]:
    """Counts each character of the texts that is not in the alphabet."""
    counts = Counter()
    for text in texts:
        counts.update(character for character in text if character not in alphabet)
    return counts


def listed(counts: Counter[str]) -> str:
    """The most frequent of what was counted, for a message: "'é' (U+00E9) 3 times, '7' once ..."."""
    shown = [
        f"{key!r}{f' (U+{ord(key):04X})' if len(key) == 1 and not key.isascii() else ''} "
        + ("once" if count == 1 else f"{count} times")
        for key, count in counts.most_common(_SHOWN)
    ]
    return ", ".join(shown) + (f" and {len(counts) - _SHOWN} others" if len(counts) > _SHOWN else "")


def _strip(text: str) -> str:
    """Letters, their accents and apostrophes beside them; all else is a space."""
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LM" else " " for c in text)
    return re.sub(r"(?<!\w)'+(?!\w)", " ", kept)


def _say(match: re.Match[str]) -> str:
    """A number as it is spoken."""
    currency, digits, decimals, ending = match.groups()
    words = _cardinal(digits.replace(",", ""))
    if ending and ending != "%" and not decimals:
        *rest, last = re.split(r"([ -])", words)
        last = _ORDINALS.get(last) or (last[:-1] + "ie" if last.endswith("y") else last) + "th"
        words = "".join([*rest, last])
    if decimals and currency and len(decimals) == 2:
        cents = f" and {_cardinal(decimals)} cents" if int(decimals) else ""
        return f" {words} {_plural(currency, words)}{cents} "
    if decimals:
        words += " point " + " ".join(_ONES[int(digit)] for digit in decimals)
    if ending == "%":
        words += " percent"
    return f" {words} {_plural(currency, words)} " if currency else f" {words} "


def _plural(currency: str, words: str) -> str:
    name = _CURRENCIES[currency]
    return name if words == "one" else f"{name}s"


def _cardinal(digits: str) -> str:
    """Digits as a number; one by one behind a zero, and where they are many, as in a telephone number."""
    if (digits[0] == "0" and len(digits) > 1) or len(digits) > 3 * len(_THOUSANDS):
        return " ".join(_ONES[int(digit)] for digit in digits)
    number, groups = int(digits), []
    if number < 20:
        return _ONES[number]
    for thousand in _THOUSANDS:
        number, group = divmod(number, 1000)
        if group:
            groups.append(f"{_below_thousand(group)} {thousand}".strip())
    return " ".join(reversed(groups))


def _below_thousand(number: int) -> str:
    words = [f"{_ONES[number // 100]} hundred"] if number >= 100 else []
    number %= 100
    if number >= 20:
        words.append(_TENS[number // 10])
        number %= 10
    if number:
        words.append(_ONES[number])
    return " ".join(words)
