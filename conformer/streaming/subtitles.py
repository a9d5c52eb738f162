"""Subtitles that a person can read, in the formats of players and editors.

A cue holds at most two lines, lasts from its first word to its last one, and at least a second; no two overlap. A new
one begins behind a pause, or where a cue is full: at the longest gap between words then.
"""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from conformer.streaming.transcript import Segment, Word

LINE = 42  # characters
LINES = 2  # of a cue
SHORTEST, LONGEST = 1.0, 7.0  # seconds of a cue; a word alone may last longer
PAUSE = 0.6  # seconds between words that begin a new cue
VTT_HEADER = "WEBVTT\n\n"


class Cue(NamedTuple):
    """Lines and when they are shown, in seconds."""

    lines: tuple[str, ...]
    start: float
    end: float


class Cues:
    """Makes cues of segments as they end. The last cue waits for what follows: that says how long it may be shown."""

    def __init__(self):
        self._words: list[Word] = []
        self._end = 0.0  # of the last cue

    def add(self, segment: Segment) -> list[Cue]:
        """Takes the next segment and returns the cues that are complete."""
        self._words += [piece for word in segment.words for piece in _pieces(word)]
        cues = []
        while (count := _count(self._words)) < len(self._words):
            cues.append(self._cut(count))
        return cues

    def finish(self) -> list[Cue]:
        """Ends the subtitles and returns the last cue, if there is one."""
        return [self._cut(len(self._words))] if self._words else []

    def _cut(self, count: int) -> Cue:
        words, self._words = self._words[:count], self._words[count:]
        start = max(words[0].start, self._end)
        end = max(words[-1].end, start + SHORTEST)
        if self._words:
            end = max(min(end, self._words[0].start), start + SHORTEST)
        self._end = end
        return Cue(tuple(_wrap(words)), start, end)


def srt(cue: Cue, number: int) -> str:
    """A cue of SubRip subtitles; numbers count from 1 in each file. A file is its cues, one after the other."""
    return f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n\n"


def vtt(cue: Cue) -> str:
    """A cue of WebVTT subtitles. A file is VTT_HEADER and its cues."""
    text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{text}\n\n"


def _count(words: Sequence[Word]) -> int:
    """Returns how many of the first words make a cue; all of them while they fit and more may follow."""
    text, lasting = 0, 0
    for count in range(1, len(words) + 1):
        fits = len(_wrap(words[:count])) <= LINES and words[count - 1].end - words[0].start <= LONGEST
        if count > 1 and not fits:
            break
        text = count
        if count == len(words):
            return count
        if words[count].start - words[0].start >= SHORTEST:
            lasting = lasting or count
            if words[count].start - words[count - 1].end >= PAUSE:
                return count
    # Full. No cue is cut where less than half of one would be left, or less than a second.
    places = range(max(lasting or text, text // 2, 1), text + 1)
    return max(places, key=lambda count: (round(words[count].start - words[count - 1].end, 2), count))


def _wrap(words: Sequence[Word]) -> list[str]:
    """The lines of words, two of much the same length rather than a long one and a short one."""
    text = " ".join(word.text for word in words)
    lines = _fill(text, LINE)
    if len(lines) == LINES:
        trials = (_fill(text, width) for width in range(len(text) // LINES, LINE))
        return next((trial for trial in trials if len(trial) == LINES), lines)
    return lines


def _fill(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _pieces(word: Word) -> list[Word]:
    """The word, or parts of a line each of one that is longer."""
    texts = _fill(word.text, LINE)
    share = (word.end - word.start) / len(texts)
    return [
        word._replace(text=text, start=word.start + share * index, end=word.start + share * (index + 1))
        for index, text in enumerate(texts)
    ]


def _clock(seconds: float, separator: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{separator}{milliseconds:03d}"
