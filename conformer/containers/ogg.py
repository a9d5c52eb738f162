"""Ogg: the pages of one stream, or of several that were put behind each other (RFC 3533)."""

import struct
from typing import BinaryIO

from conformer.containers.errors import ContainerError, Part, TruncatedError
from conformer.containers.stream import only_zeros

_HEADER = 27  # bytes of a page, before the lengths of its segments
_FIRST, _LAST = 2, 4  # flags of a page: it begins or ends a logical stream
_TAG_BYTES = 1024  # so many at the end may be no page


def examine(file: BinaryIO, size: int) -> list[list[Part]]:
    """The streams of a file of `size` bytes that has several, one file each; none for a single one.

    Decoders read the first alone. Raises ContainerError for a stream without its last page, or with pages missing.
    """
    starts, position, opening = [0], 0, True
    ended: dict[int, bool] = {}  # by the serial number of a logical stream
    numbers: dict[int, int] = {}  # of its last page
    while position < size:
        file.seek(position)
        page = file.read(_HEADER + 255)
        if page[:4] != b"OggS"[: len(page)]:
            if size - position < _TAG_BYTES or only_zeros(file, position):
                break
            raise ContainerError(f"is damaged at byte {position}, where no page begins: fetch or write it again")
        if len(page) < _HEADER or len(page) < _HEADER + page[26]:
            raise TruncatedError
        flags, (serial, number) = page[5], struct.unpack_from("<II", page, 14)
        if flags & _FIRST and not opening:
            if not all(ended.values()):
                raise TruncatedError
            starts.append(position)
            ended.clear()
            numbers.clear()
        opening = bool(flags & _FIRST)
        if not opening and number != numbers.get(serial, -1) + 1:
            raise ContainerError(f"lacks pages before byte {position}: fetch or write it again")
        numbers[serial], ended[serial] = number, bool(flags & _LAST)
        position += _HEADER + page[26] + sum(page[_HEADER : _HEADER + page[26]])
    if position > size or not all(ended.values()):
        raise TruncatedError
    return [[span] for span in zip(starts, [*starts[1:], size], strict=True)] if len(starts) > 1 else []
