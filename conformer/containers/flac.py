"""Counts the samples of a FLAC file from its last frame: a writer to a pipe cannot put the count into the header.

RFC 9639, section 9: a frame begins with 15 bits that are always the same and gives its number or that of its first
sample. A checksum of 8 bits guards its header, and one of 16 bits the whole frame.
"""

import mmap
import struct
from typing import BinaryIO

from conformer.containers.chunks import patched
from conformer.containers.errors import Part, StrayError, TruncatedError

_BLOCK_SIZES = {1: 192} | {2 + n: 576 << n for n in range(4)} | {8 + n: 256 << n for n in range(8)}  # by code
_TOTAL_BITS = 36
_TOTAL_AT = 18  # offset of the 64 bits that end with the number of samples
_WINDOW = 1 << 16  # bytes at the end that hold the last frame, where the header does not say how long one is


def examine(file: BinaryIO, size: int) -> list[list[Part]]:
    """The file to decode in the place of one whose header does not give all samples; none where it does.

    Raises TruncatedError for a file whose length is left open and whose last frame is not whole, StrayError for files
    put behind each other.
    """
    file.seek(0)
    head = file.read(_TOTAL_AT + 8)
    if len(head) < _TOTAL_AT + 8 or head[4] & 0x7F:
        raise TruncatedError  # before the block that has to come first ends
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(head[:4] + b"\0\0\0\x22", 4) >= 0:
            raise StrayError
    (packed,) = struct.unpack_from(">Q", head, _TOTAL_AT)
    total = packed & ((1 << _TOTAL_BITS) - 1)
    block_size = int.from_bytes(head[10:12])
    largest = int.from_bytes(head[15:18])
    start = _first_frame(file, size)
    begin = max(start, size - max(_WINDOW, 2 * largest))
    file.seek(start)
    first = file.read(4)
    if len(first) < 4:  # not even the header of a frame
        raise TruncatedError
    file.seek(begin)
    tail = file.read(size - begin)
    at = len(tail)
    while (at := tail.rfind(first[:2], 0, at)) >= 0:
        end = _end(tail[at : at + 16], first, block_size)
        if end is None:
            continue
        if end == total:
            return []
        if _crc16(tail[at:]) == 0:  # a whole frame, to the end of the file
            return patched(size, _TOTAL_AT, struct.pack(">Q", packed - total + end)) if end > total else []
    if total == 0:
        raise TruncatedError
    return []  # the decoder will tell


def _first_frame(file: BinaryIO, size: int) -> int:
    """The offset behind the blocks of metadata."""
    position, last = 4, False
    while not last:
        file.seek(position)
        head = file.read(4)
        if len(head) < 4:
            raise TruncatedError
        last, position = head[0] >= 0x80, position + 4 + int.from_bytes(head[1:])
    if position > size:
        raise TruncatedError
    return position


def _end(head: bytes, first: bytes, fixed_block_size: int) -> int | None:
    """The number of samples up to the end of the frame with this header; None: it is none."""
    head = head.ljust(16, b"\0")
    if head[2] & 15 != first[2] & 15 or head[3] & 15 != first[3] & 15:  # sample rate; bits
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # as UTF-8 writes a character, but up to 36 bits
    if ones in (1, 8):
        return None
    number, position = head[4] & 0x7F >> ones, 5 + max(0, ones - 1)
    for byte in head[5:position]:
        number = number << 6 | byte & 0x3F
    code = head[2] >> 4
    if code in (6, 7):
        width = code - 5
        block = int.from_bytes(head[position : position + width]) + 1
        position += width
    elif code in _BLOCK_SIZES:
        block = _BLOCK_SIZES[code]
    else:
        return None
    position += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if position >= len(head) or _crc8(head[: position + 1]):
        return None
    return (number if first[1] & 1 else number * fixed_block_size) + block


def _table(polynomial: int, bits: int) -> list[int]:
    table = []
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) & 1 else 0)
        table.append(value & ((1 << bits) - 1))
    return table


_CRC8, _CRC16 = _table(0x07, 8), _table(0x8005, 16)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value
