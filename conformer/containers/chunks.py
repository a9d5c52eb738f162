"""Containers with the length of the audio in a header: WAV and its relatives, AIFF, CAF, W64, AU, NIST SPHERE."""

import re
import struct
from typing import BinaryIO, NamedTuple

from conformer.containers.errors import ContainerError, Part, StrayError, TruncatedError
from conformer.containers.stream import Stream

_OPEN_32 = 0x7FFF_0000  # a writer to a pipe cannot know the size and stores something above this
_OPEN_64 = 1 << 62
STRAY_BYTES = 1024  # fewer behind the audio may be anything
_PRINTABLE = re.compile(rb"[ -~]{4}")
_WAVE = re.compile(rb"(RIFF|RIFX|RF64|BW64)....WAVE", re.DOTALL)
_CHUNKS = re.compile(rb"(RIFF|RIFX|RF64|BW64)....WAVE|FORM....(AIF[FC]|8SVX|16SV)|caff|riff\x2e\x91", re.DOTALL)


class _Layout(NamedTuple):
    """The layout of a container that is made of chunks."""

    header: struct.Struct  # of a chunk: identifier, size
    size: struct.Struct  # the size alone
    first: int = 12  # offset of the first chunk
    audio: tuple[bytes, ...] = (b"data",)  # how the identifier of the chunk with the audio begins
    lead: int = 0  # bytes of that chunk before the samples
    align: int = 2  # chunks begin at multiples of so many bytes
    counts_header: bool = False  # whether the size of a chunk holds its header
    has_total: bool = True  # whether the size of the file is at byte 4


def _layout(order: str, size: str, identifier: int = 4, **rest) -> _Layout:
    return _Layout(struct.Struct(f"{order}{identifier}s{size}"), struct.Struct(f"{order}{size}"), **rest)


_LITTLE, _BIG = _layout("<", "I"), _layout(">", "I")
_LAYOUTS = {
    b"RIFF": _LITTLE,
    b"RIFX": _BIG,
    b"RF64": _LITTLE,
    b"BW64": _LITTLE,
    b"FORM": _BIG._replace(audio=(b"SSND", b"BODY"), lead=8),
    b"caff": _layout(">", "q", first=8, lead=4, align=1, has_total=False),
    b"riff": _layout("<", "q", 16, first=40, align=8, counts_header=True, has_total=False),
}


def are_chunks(head: bytes) -> bool:
    """Returns whether a file that begins with `head` is made of chunks."""
    return bool(_CHUNKS.match(head))


def is_wave(head: bytes) -> bool:
    """Returns whether a file that begins with `head` is a WAV file, which can be read while it is written."""
    return bool(_WAVE.match(head))


def examine(file: BinaryIO, size: int) -> list[list[Part]]:
    """Returns the file to decode in place of one whose header leaves its length open, as parts; else an empty list.

    Raises ContainerError for a file that is cut, or holds more than its header says.
    """
    file.seek(0)
    layout = _LAYOUTS[file.read(4)]
    position, wide = layout.first, None
    while True:
        file.seek(position)
        head = file.read(layout.header.size)
        if len(head) < layout.header.size:
            if head or position > size or _total(file, layout) > size:
                raise TruncatedError
            return []  # a file without audio
        identifier, length = layout.header.unpack(head)
        start = position + layout.header.size
        length -= layout.header.size * layout.counts_header
        if identifier.startswith(layout.audio):
            break
        if not _PRINTABLE.match(identifier):
            return []  # no chunk: for the decoder to tell what it is
        if identifier == b"ds64":
            wide = start
        if length < 0 or start + length > size:
            raise TruncatedError
        position = _aligned(start + length, layout)

    available, limit = size - start, _OPEN_64 if layout.size.size == 8 else _OPEN_32
    if wide is not None and length == 0xFFFF_FFFF:
        file.seek(wide + 8)
        length, limit = struct.unpack("<Q", file.read(8))[0], _OPEN_64
    left_open = length < 0 or (length >= limit and length > available)
    if length <= layout.lead < available:  # no audio, unless the header was never completed
        left_open = left_open or abs(_total(file, layout) - size) > 1
    if left_open and limit == _OPEN_64 and wide is not None:
        return patched(size, wide, struct.pack("<QQ", size - 8, available))
    if left_open:
        length = available + layout.header.size * layout.counts_header
        if layout.size.size == 4 and length > 0xFFFF_FFFF:
            raise ContainerError("holds more than 4 GiB, which its header cannot say: write it as RF64 or FLAC")
        return patched(size, start - layout.size.size, layout.size.pack(length))
    if length > available:
        raise TruncatedError
    _check_behind(file, layout, start + length, size)
    return []


def read_header(file: Stream) -> bytes:
    """Reads a WAV stream up to its first sample, and returns what comes before. Raises TruncatedError without one."""
    head = file.read(12)
    header = _LAYOUTS[head[:4]].header
    while len(chunk := file.read(header.size)) == header.size:
        head += chunk
        identifier, size = header.unpack(chunk)
        if identifier == b"data":
            return head
        head += (body := file.read(size + size % 2))
        if len(body) < size:
            break
    raise TruncatedError


def block_bytes(head: bytes) -> int:
    """Bytes of a sample of all channels that the header of a WAV stream (`read_header`) gives; 0 where it does not."""
    at = head.find(b"fmt ") + 20
    return int.from_bytes(head[at : at + 2], "big" if head[:4] == b"RIFX" else "little") if at >= 20 else 0


def audio_bytes(head: bytes) -> int | None:
    """Bytes of samples that the header of a WAV stream (`read_header`) promises; None: it leaves that open."""
    (size,), limit = _LAYOUTS[head[:4]].size.unpack(head[-4:]), _OPEN_32
    if size == 0xFFFF_FFFF and (at := head.find(b"ds64")) >= 0:
        size, limit = struct.unpack_from("<Q", head, at + 16)[0], _OPEN_64
    return size if 0 < size < limit else None


def examine_au(file: BinaryIO, size: int) -> list[list[Part]]:
    """Examines an AU file as `examine` does."""
    file.seek(0)
    head = file.read(12)
    if len(head) < 12:
        raise TruncatedError
    start, length = struct.unpack_from(">II" if head[:4] == b".snd" else "<II", head, 4)
    available = size - start
    if available > 0 and (length == 0 or (length >= _OPEN_32 and length > available)):
        return patched(size, 8, b"\xff\xff\xff\xff")
    if length > available:
        raise TruncatedError
    if available - length >= STRAY_BYTES and length < _OPEN_32:
        raise StrayError
    return []


def examine_nist(file: BinaryIO, size: int) -> list[list[Part]]:
    """Examines a NIST SPHERE file as `examine` does. Its header has text lines of the form "name -i value"."""
    file.seek(0)
    head = file.read(16)
    if not (length := head[8:].strip()).isdigit():
        return []
    head += file.read(max(0, int(length) - 16))
    values = {name: int(value) for name, value in re.findall(rb"(\w+) -i (\d+)", head)}
    coding = re.search(rb"sample_coding -s\d+ (\S+)", head)
    frame = values.get(b"sample_n_bytes", 0) * values.get(b"channel_count", 1)
    compressed = coding is not None and b"," in coding[1]
    end = int(length) + values.get(b"sample_count", 0) * frame
    if len(head) < int(length) or (end > size and not compressed):
        raise TruncatedError
    file.seek(end)
    if not compressed and file.read(len(b"NIST_1A")) == b"NIST_1A":
        raise StrayError
    return []


def patched(size: int, offset: int, data: bytes) -> list[list[Part]]:
    """A file of `size` bytes with some replaced."""
    return [[(0, offset), data, (offset + len(data), size)]]


def _aligned(position: int, layout: _Layout) -> int:
    return -(-position // layout.align) * layout.align


def _total(file: BinaryIO, layout: _Layout) -> int:
    """The size that the header gives the whole file; -1: none."""
    if not layout.has_total:
        return -1
    file.seek(4)
    return layout.size.unpack(file.read(4))[0] + 8


def _check_behind(file: BinaryIO, layout: _Layout, end: int, size: int) -> None:
    """Raises ContainerError where more than chunks, padding and tags follow the audio."""
    length = 1
    while length and end < size:
        file.seek(end)
        length = _chunk_length(file.read(STRAY_BYTES + layout.align), _aligned(end, layout) - end, layout)
        end += length


def check_next(head: bytes, file: Stream) -> None:
    """Raises ContainerError unless what `file` holds behind the audio of a WAV stream with `head` may be there."""
    layout = _LAYOUTS[head[:4]]
    _chunk_length(file.read(STRAY_BYTES + layout.align), (audio_bytes(head) or 0) % layout.align, layout)


def _chunk_length(rest: bytes, padding: int, layout: _Layout) -> int:
    """Bytes up to the end of the chunk that comes next; 0: nothing that counts does.

    Some writers leave out the padding before it. Raises ContainerError for anything else.
    """
    for start in (padding, 0):
        body = rest[start : start + STRAY_BYTES]
        if len(body) < STRAY_BYTES or not body.strip(b"\0") or body[:3] in (b"ID3", b"TAG"):
            return 0
        identifier, length = layout.header.unpack_from(body)
        if body[:4] in _LAYOUTS or identifier.startswith(layout.audio):
            break
        if length >= 0 and _PRINTABLE.match(identifier):
            return start + max(1, length + layout.header.size * (not layout.counts_header))
    raise StrayError
