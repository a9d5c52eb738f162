"""Transcripts with times in the formats that players and editors read."""

from collections.abc import Sequence

from conformer.streaming.stream import Segment


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip subtitles, one a segment."""
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (text, start, end) in enumerate(_cues(segments), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT subtitles, one a segment."""
    return "WEBVTT\n\n" + "\n".join(
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n" for text, start, end in _cues(segments)
    )


def _cues(segments: Sequence[Segment]) -> list[tuple[str, float, float]]:
    """A cue lasts from a segment's first word to its last, not through the silence around them."""
    return [(segment.text, segment.words[0].start, segment.words[-1].end) for segment in segments]


def _clock(seconds: float, separator: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{separator}{milliseconds:03d}"
