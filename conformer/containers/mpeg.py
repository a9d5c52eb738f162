"""Counts the frames of an MP3 file: without a Xing header, decoders guess the length from the first frame.

Each frame of MPEG audio (ISO 11172-3, 13818-3) begins with four bytes that give its rate and length. An encoder may
put a frame without sound first that gives the number of frames ("Xing", "Info" or "VBRI").
"""

import mmap
import re
import struct
from typing import BinaryIO, NamedTuple

from conformer.containers.errors import ContainerError, Part, StrayError, TruncatedError
from conformer.containers.stream import only_zeros

_VERSION_1 = 3
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBITS = {  # by whether it is version 1, and layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
ID3_HEAD = 10  # bytes at the start of a tag, and at its end where it has such
_FOOTER = 16  # flag of such a tag
_STRAY_BYTES = 4096  # so many may be no frames
_DELAY = 576  # samples that LAME puts before the sound; a decoder leaves out its own besides
_ROOM = 9  # index of a bit rate whose frames hold a count


class Frame(NamedTuple):
    """The facts that the four bytes of a header give."""

    length: int  # bytes, header included
    kind: tuple[int, int, int]  # version, layer, sample rate: the same in every frame of a stream
    mono: bool


def frame_at(data: bytes | mmap.mmap, at: int) -> Frame | None:
    """The frame whose header is at an offset; None if there is none."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] < 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    index, rate, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or not 0 < index < 15:
        return None
    hertz = _RATES[version][rate]
    bits = 1000 * _KBITS[version == _VERSION_1, layer][index - 1]
    if layer == 1:
        length = (12 * bits // hertz + padding) * 4
    else:
        length = (72 if layer == 3 and version != _VERSION_1 else 144) * bits // hertz + padding
    return Frame(length, (version, layer, hertz), data[at + 3] >> 6 == 3)


def id3_bytes(head: bytes) -> int:
    """Bytes of the ID3v2 tag whose first ID3_HEAD bytes these are; 0: it is none."""
    if head[:3] != b"ID3" or len(head) < ID3_HEAD or max(head[6:10]) >= 0x80:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return ID3_HEAD + size + ID3_HEAD * bool(head[5] & _FOOTER)


def bytes_of_two_frames(head: bytes) -> int:
    """Bytes that hold the frame at the start and the header of the next; 0: no frame is there."""
    frame = frame_at(head, 0)
    return frame.length + 4 if frame else 0


def begins_with_frames(head: bytes) -> bool:
    """Returns whether data begins with two frames in a row, which plain samples do not look like."""
    frame = frame_at(head, 0)
    following = frame_at(head, frame.length) if frame else None
    return frame is not None and following is not None and following.kind == frame.kind


def examine(file: BinaryIO) -> list[list[Part]]:
    """Returns the MP3 file to decode in place of this one, with the count of its frames, as parts.

    The list is empty where the file can be decoded as it is.

    Raises ContainerError for a file that lacks frames, or a part of its last one, or holds much that is no frame.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Walk(data).replacement()


class _Walk:
    """All frames of a file."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self._runs: list[list[int]] = []  # ranges of frames with sound
        self._promises: list[tuple[int, int | None]] = []  # frames before, and how many were promised then
        self._count = 0
        self._cut = False  # inside the last frame
        self._first, self._start = b"", 0  # the first header, and its offset
        kind, stray = None, 0
        at = self._skip_tag(0)
        while at + 4 <= len(data):
            frame = frame_at(data, at)
            if frame is None or frame.kind != (kind or frame.kind):
                after = self._skip_tag(at)
                if after == at:
                    if only_zeros(data, at):
                        break
                    if frame is not None and begins_with_frames(data[at : at + frame.length + 4]):
                        raise StrayError  # frames of another kind
                    after = self._find(at + 1, kind)
                    stray += (after - at) * (kind is not None)
                    if stray > _STRAY_BYTES:
                        raise ContainerError(f"is damaged at byte {at}: fetch or write it again")
                at = after
                continue
            if kind is None:
                kind, self._first, self._start = frame.kind, data[at : at + 4], at
            if at + frame.length > len(data):
                self._cut = True
                break
            if frame.kind[1] == 3 and (promise := self._promise(at, frame)):
                self._promises.append((self._count, promise[0]))
            else:
                self._count += 1
                if self._runs and self._runs[-1][1] == at:
                    self._runs[-1][1] += frame.length
                else:
                    self._runs.append([at, at + frame.length])
            at += frame.length
        self._cut = self._cut or data[at : at + 4][:1] == b"\xff"  # inside a header
        self._layer = kind[1] if kind else 0

    def replacement(self) -> list[list[Part]]:
        if not self._layer:
            return []  # for the decoder to tell what it is
        stops = [before for before, _ in self._promises[1:]] + [self._count]
        kept = True
        for (before, promised), stop in zip(self._promises, stops, strict=False):
            if promised is not None and stop - before < promised - 1:  # some encoders count their own frame
                raise TruncatedError
            kept = kept and promised is not None and stop - before <= promised
        if len(self._promises) == 1 and self._promises[0][0] == 0 and kept:
            return [] if self._start == self._known_tags() else [[(self._start, len(self._data))]]
        if self._cut and not (self._promises and self._promises[-1][1] is not None):
            raise TruncatedError
        if self._layer != 3:
            return []
        return [[self._counted(), *((start, end) for start, end in self._runs)]]

    def _counted(self) -> bytes:
        """A frame without sound that gives the number of those that follow, and what to leave out at the start."""
        first = self._first
        head = bytes([0xFF, first[1] | 1, _ROOM << 4 | first[2] & 0x0C, first[3]])
        frame = frame_at(head, 0)
        assert frame is not None
        delay = b"LAME3.100" + bytes(12) + (_DELAY << 12).to_bytes(3)
        body = bytes(self._side(frame)) + b"Xing" + struct.pack(">II", 1, self._count) + delay
        return (head + body).ljust(frame.length, b"\0")

    def _promise(self, at: int, frame: Frame) -> tuple[int | None] | None:
        """The number of frames that a frame without sound promises, if it is one."""
        data = self._data
        for offset in (4 + self._side(frame), 6 + self._side(frame)):
            if data[at + offset : at + offset + 4] in (b"Xing", b"Info"):
                flags, count, size = struct.unpack(">III", data[at + offset + 4 : at + offset + 16].ljust(12, b"\0"))
                if flags & 3 == 3 and at + size > len(data):
                    raise TruncatedError
                return (count if flags & 1 else None,)
        if data[at + 36 : at + 40] == b"VBRI":
            # Decoders differ in whether they know this one: its frame is left out, and counted anew.
            return (None,)
        return None

    @staticmethod
    def _side(frame: Frame) -> int:
        """Bytes of side information behind the header."""
        if frame.kind[0] == _VERSION_1:
            return 17 if frame.mono else 32
        return 9 if frame.mono else 17

    def _skip_tag(self, at: int) -> int:
        """The offset behind the tags at one: ID3v2, ID3v1, APE."""
        data = self._data
        while True:
            head = data[at : at + 16]
            if length := id3_bytes(head):
                at += length
            elif head[:3] == b"TAG":
                at += 128
            elif head[:8] == b"APETAGEX" and len(head) == 16:
                at += 32 + struct.unpack("<I", head[12:])[0]
            else:
                return at

    def _known_tags(self) -> int:
        """The offset behind the tags at the start that the decoder skips: ID3v2 without a second header at its end."""
        at = 0
        while (length := id3_bytes(self._data[at : at + ID3_HEAD])) and not self._data[at + 5] & _FOOTER:
            at += length
        return at

    def _find(self, at: int, kind: tuple[int, int, int] | None) -> int:
        """The offset of the next frame that another follows; the end if there is none."""
        data = self._data
        for match in re.compile(rb"\xff[\xe0-\xff]|TAG|ID3|APETAGEX").finditer(data, at):
            frame = frame_at(data, match.start())
            if frame is None:
                if match[0][0] != 0xFF:
                    return match.start()
                continue
            if frame.kind != (kind or frame.kind):
                continue
            following = match.start() + frame.length
            if following == len(data) or ((after := frame_at(data, following)) and after.kind == frame.kind):
                return match.start()
        return len(data)
