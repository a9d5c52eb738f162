"""The files that transcripts are written to: plain text, words with times, JSON, subtitles."""

import json
import pathlib
from collections.abc import Sequence

from conformer import system
from conformer.streaming.subtitles import VTT_HEADER, Cue, Cues, srt, vtt
from conformer.streaming.transcript import Segment

SPECIAL = {"-": "stdin"}  # names of sources that are no files


class Writer:
    """Gives the text of one file piece by piece: what `begin` returns, then `segment` of each, then `end`.

    Args:
        format: "txt", "words", "json", "srt" or "vtt".
        source: what the segments come from, for JSON.
    """

    def __init__(self, format: str, source: str):
        self._format, self._source = format, source
        self._cues, self._num_cues = Cues(), 0

    def begin(self) -> str:
        """Returns the text before the first segment."""
        return VTT_HEADER if self._format == "vtt" else ""

    def segment(self, segment: Segment) -> str:
        """Returns the text of a segment, or of the cues that are complete with it."""
        match self._format:
            case "txt":
                return segment.text + "\n"
            case "words":
                return "".join(f"{word.start:8.2f} {word.end:8.2f}  {word.text}\n" for word in segment.words)
            case "json":
                return json.dumps({"source": self._source} | segment.as_dict()) + "\n"
        return self._subtitles(self._cues.add(segment))

    def end(self) -> str:
        """Returns the text behind the last segment."""
        return self._subtitles(self._cues.finish())

    def _subtitles(self, cues: Sequence[Cue]) -> str:
        texts = []
        for cue in cues:
            self._num_cues += 1
            texts.append(srt(cue, self._num_cues) if self._format == "srt" else vtt(cue))
        return "".join(texts)


def output_paths(folder: str | pathlib.Path, sources: Sequence[str], suffix: str) -> list[pathlib.Path]:
    """A file of its own in a folder for each source, named after it: a.srt, and a-2.srt for another a.

    Raises OutputError where the folder cannot be one, a file in it cannot be written, or one is a source itself.
    """
    folder = pathlib.Path(folder)
    system.check_folder(folder)
    paths, taken = [], set()
    for source in sources:
        stem = SPECIAL.get(source) or pathlib.Path(source).stem
        names = (f"{stem}{'' if number == 1 else f'-{number}'}.{suffix}" for number in range(1, len(sources) + 2))
        name = next(name for name in names if name.casefold() not in taken)
        taken.add(name.casefold())
        path = folder / name
        if folder.exists():
            system.check_writable(path)
        if any(path.exists() and path.samefile(other) for other in sources if pathlib.Path(other).exists()):
            raise system.OutputError(f"{path} would replace a source of that name: name another folder")
        paths.append(path)
    return paths
