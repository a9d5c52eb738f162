"""Compares the length of the audio that a container's header gives with the audio that the file holds.

A decoder trusts the length in the header. It reports nothing when the file was cut, and it reads nothing of a file
whose writer did not know the length, such as a writer to a pipe. So the header is compared with the file first.
"""

import re
from typing import BinaryIO

from conformer.containers import chunks, flac, mpeg, ogg
from conformer.containers.errors import ContainerError, Part, TruncatedError

__all__ = [
    "COPIED_BYTES",
    "HEAD_BYTES",
    "ContainerError",
    "Part",
    "TruncatedError",
    "assemble",
    "behind_tags",
    "examine",
    "is_container",
    "more_head",
]

HEAD_BYTES = 12  # that tell what a file is; `more_head` says how many more are needed
COPIED_BYTES = 1 << 17  # at a time
_READERS = {
    b"fLaC": flac.examine,
    b"OggS": ogg.examine,
    b".snd": chunks.examine_au,
    b"dns.": chunks.examine_au,
    b"NIST": chunks.examine_nist,
}
# Containers that cannot be decoded, but hold no plain samples either: Matroska, MP4, ASF, AMR.
_OTHERS = re.compile(rb"ID3|\x1aE\xdf\xa3|....ftyp|\x30\x26\xb2\x75|#!AMR", re.DOTALL)


def is_container(head: bytes) -> bool:
    """Returns whether a file or stream that begins with `head` is a container, and not plain samples."""
    known = chunks.are_chunks(head) or head[:4] in _READERS or _OTHERS.match(head)
    return bool(known) or mpeg.begins_with_frames(head)


def more_head(head: bytes) -> int:
    """Returns the number of bytes that `is_container` needs beyond these first `HEAD_BYTES`."""
    return max(0, mpeg.bytes_of_two_frames(head) - len(head))


def behind_tags(file: BinaryIO) -> int:
    """The offset of a container that stands behind tags (ID3), which are no part of it; 0: none does."""
    start, length = 0, -1
    while length:
        start += max(0, length)
        file.seek(start)
        length = mpeg.id3_bytes(file.read(mpeg.ID3_HEAD))
    file.seek(start)
    head = file.read(HEAD_BYTES)
    return start if start and (chunks.are_chunks(head) or head[:4] in _READERS) else 0


def examine(file: BinaryIO, size: int) -> list[list[Part]]:
    """Compares what a file of `size` bytes promises with what it holds.

    Returns the files to decode in its place, each as the parts it is made of; none where it can be read as it is.
    Raises ContainerError.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if chunks.are_chunks(head):
        return chunks.examine(file, size)
    if reader := _READERS.get(head[:4]):
        return reader(file, size)
    if head[:3] == b"ID3" or mpeg.frame_at(head, 0):
        return mpeg.examine(file)
    return []


def assemble(file: BinaryIO, parts: list[Part], out: BinaryIO) -> None:
    """Writes the parts, which are decoded in place of `file`, to `out`."""
    for part in parts:
        if isinstance(part, bytes):
            out.write(part)
            continue
        file.seek(part[0])
        left = part[1] - part[0]
        while left and (data := file.read(min(left, COPIED_BYTES))):
            out.write(data)
            left -= len(data)
