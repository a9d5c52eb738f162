"""Bytes that come one after the other, such as through a pipe."""

import mmap
from typing import BinaryIO, Protocol, runtime_checkable


@runtime_checkable
class Stream(Protocol):
    """Bytes that come one after the other."""

    def read(self, count: int, /) -> bytes:
        """The next `count` bytes; fewer at the end alone."""
        ...


class Ahead:
    """A stream of which some bytes have been read already."""

    def __init__(self, head: bytes, file: Stream):
        self._head, self._file = head, file

    def read(self, count: int) -> bytes:
        data, self._head = self._head[:count], self._head[count:]
        return data + self._file.read(count - len(data)) if len(data) < count else data


def only_zeros(file: BinaryIO | mmap.mmap, start: int) -> bool:
    """Returns whether a file holds zeros alone from an offset on, such as a disk's whole blocks end with."""
    file.seek(start)
    while data := file.read(1 << 16):
        if data.strip(b"\0"):
            return False
    return True
