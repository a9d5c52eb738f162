"""Damage to the bytes of a file, drawn at random: cut, turned, put in, taken out, and values that no writer writes."""

import random
import re
import struct
from typing import NamedTuple

_HEAD = 256  # bytes; half of the damage falls there, since most of a format's decisions do
_INTEGERS = (0, 1, 2, 127, 128, 255, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_TOKEN = re.compile(rb'"[^"\n]*"|-?[0-9][0-9.eE+-]*|[A-Za-z_]+|[\[\]{}:,\\]')
_TOKENS = (
    *(b"", b"0", b"-1", b"1", b"16", b"0.5", b"1e5", b"1e400", b"-1e-400", b"9" * 40, b"NaN", b"Infinity"),
    *(b"null", b"true", b'""', b'"x"', b'"\\ud800"', b"[]", b"{}", b"[[1, 2]]", b'{"a": 1}', b"[" * 2000),
    *(b"\t", b"\n", b"\r", b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xc3\xa9"),
    *(b"\\end\\", b"\\1-grams:", b"ngram 9=9", b"<unk>"),
)


class Damage(NamedTuple):
    """The damage that was done to a file."""

    data: bytes
    kinds: tuple[str, ...]
    first: int  # the first byte that may differ

    @property
    def only_lost(self) -> bool:
        """True where bytes were taken away and nothing else was done: none was changed or put in."""
        return set(self.kinds) <= {"cut", "delete"}


def damage(data: bytes, rng: random.Random, is_text: bool) -> Damage:
    """One to three kinds of damage; of a text, mostly to its words and numbers."""
    kinds, first = [], len(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.choice(("token", "token", "token", *_BYTES) if is_text else tuple(_BYTES))
        result = _token(data, rng) if kind == "token" else _BYTES[kind](data, rng)
        first = min(
            first, *(at for at, pair in enumerate(zip(data, result, strict=False)) if pair[0] != pair[1]), len(result)
        )
        data = result
        kinds.append(kind)
    return Damage(data, tuple(kinds), first)


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(min(len(data), _HEAD) if rng.random() < 0.5 else len(data)) if data else 0


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _delete(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 100, 1000)) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16, 100))) + data[at:]


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        out[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _integer(data: bytes, rng: random.Random) -> bytes:
    """A number that limits and signs break on, in one of the sizes and orders of bytes."""
    size, form = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    value = rng.choice(_INTEGERS) & ((1 << 8 * size) - 1)
    at = _place(data, rng)
    return (data[:at] + struct.pack(rng.choice("<>") + form, value) + data[at + size :])[: max(len(data), at + size)]


def _copy(data: bytes, rng: random.Random) -> bytes:
    """A piece of the file over another one."""
    start, at, size = _place(data, rng), _place(data, rng), rng.choice((4, 16, 64, 1000))
    return data[:at] + data[start : start + size] + data[at + size :]


def _token(data: bytes, rng: random.Random) -> bytes:
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return data + rng.choice(_TOKENS)
    token = rng.choice(tokens)
    other = rng.choice(tokens)[0] if rng.random() < 0.3 else rng.choice(_TOKENS)
    return data[: token.start()] + other + data[token.end() :]


_BYTES = {"cut": _cut, "delete": _delete, "insert": _insert, "flip": _flip, "integer": _integer, "copy": _copy}
