"""What a container promises of the audio in it: where it ends, and what its header leaves open or says wrongly.

A decoder takes the length in a header for the truth. It reads a file that was cut without a word, and nothing of a
file whose writer could not know the length, as one to a pipe cannot. So the promise is compared with the file first.
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
    "examine",
    "is_container",
    "more_head",
]

HEAD_BYTES = 12  # of a file that tell what it is; `more_head` says where more are needed
COPIED_BYTES = 1 << 17  # at a time
_READERS = {
    b"fLaC": flac.examine,
    b"OggS": ogg.examine,
    b".snd": chunks.examine_au,
    b"dns.": chunks.examine_au,
    b"NIST": chunks.examine_nist,
}
# And what cannot be decoded, but is no sample either: Matroska, MP4, ASF, AMR.
_OTHERS = re.compile(rb"ID3|\x1aE\xdf\xa3|....ftyp|\x30\x26\xb2\x75|#!AMR", re.DOTALL)


def is_container(head: bytes) -> bool:
    """Whether a file or stream that begins so is a container, and not samples."""
    known = chunks.are_chunks(head) or head[:4] in _READERS or _OTHERS.match(head)
    return bool(known) or mpeg.begins_with_frames(head)


def more_head(head: bytes) -> int:
    """How many bytes `is_container` needs beyond these first `HEAD_BYTES`."""
    return max(0, mpeg.bytes_of_two_frames(head) - len(head))


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
    """Writes what is decoded in the place of `file`."""
    for part in parts:
        if isinstance(part, bytes):
            out.write(part)
            continue
        file.seek(part[0])
        left = part[1] - part[0]
        while left and (data := file.read(min(left, COPIED_BYTES))):
            out.write(data)
            left -= len(data)
