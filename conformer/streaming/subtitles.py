"""A segment in the formats that players and editors read: a cue lasts from its first word to its last."""

from conformer.streaming.transcript import Segment

VTT_HEADER = "WEBVTT\n"


def srt_cue(segment: Segment, number: int) -> str:
    """A cue of SubRip subtitles; numbers count from 1. A file joins its cues with newlines."""
    start, end = segment.words[0].start, segment.words[-1].end
    return f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{segment.text}\n"


def vtt_cue(segment: Segment) -> str:
    """A cue of WebVTT subtitles. A file joins VTT_HEADER and its cues with newlines."""
    start, end = segment.words[0].start, segment.words[-1].end
    return f"{_clock(start, '.')} --> {_clock(end, '.')}\n{segment.text}\n"


def _clock(seconds: float, separator: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{separator}{milliseconds:03d}"
