"""Utterances, and the places they come from: a JSONL manifest, a pack folder, or a LibriSpeech folder.

Reading a manifest opens no audio but the headers of files whose duration it does not give (of LibriSpeech's layout,
all), or of which it may mean a part. `Utterance.samples` does, and what it cannot read it reports as `AudioError`.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile

from conformer.audio import INT16_SCALE, AudioError, audio_seconds, load_audio, resample
from conformer.data.splits import Draw
from conformer.text import normalise, read_lines, visible
from kernels.typing import Float, Int

MANIFEST = "manifest.jsonl"
RECIPE = "recipe_train.jsonl"
TRANSCRIPTS = ".trans.txt"  # how the name of a chapter's transcripts ends
_LONGER_SECONDS = 0.1  # by so much durations of whole files may be rounded
_FADE_SECONDS = 0.005  # linear fade of each clip of a recipe, in and out


class DataError(ValueError):
    """A corpus that cannot be used; the message names the file, line or key and the remedy."""


@runtime_checkable
class Audio(Protocol):
    """Speech, wherever it is kept."""

    def samples(self, sample_rate: int) -> Float[np.ndarray, "samples"]:
        """Mono float32 samples in [-1, 1) at `sample_rate` Hz. Raises AudioError where there are none."""
        ...


@dataclasses.dataclass(frozen=True)
class AudioFile:
    """Speech in a file that soundfile reads."""

    path: pathlib.Path

    def samples(self, sample_rate: int) -> Float[np.ndarray, "samples"]:
        return load_audio(self.path, sample_rate)


@dataclasses.dataclass(frozen=True, eq=False)
class Pcm:
    """Speech in memory."""

    data: Int[np.ndarray, "samples"]  # int16
    sample_rate: int

    def samples(self, sample_rate: int) -> Float[np.ndarray, "samples"]:
        return resample(self.data.astype(np.float32) / INT16_SCALE, self.sample_rate, sample_rate)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Clips of single words, joined into a string. Counts are in samples at `sample_rate`.

    Each clip follows the one before after `gap` samples, the first after `lead` samples, with a linear fade of 5 ms in
    and out; then white noise is added.
    """

    folder: pathlib.Path
    segments: tuple[tuple[str, int], ...]  # clip (relative to the folder), gap before it
    lead: int
    num_samples: int
    noise_seed: int
    noise_dbfs: float
    sample_rate: int

    def render(self) -> Int[np.ndarray, "samples"]:
        """The int16 samples at the native rate. Raises AudioError for a clip that cannot be read or does not fit."""
        out = np.zeros(self.num_samples)
        fade = int(_FADE_SECONDS * self.sample_rate)
        ramp = np.arange(fade) / fade
        position = self.lead
        for name, gap in self.segments:
            path = self.folder / name
            clip = _clip(path, self.sample_rate).astype(np.float64)
            position += gap
            if not fade <= len(clip) <= self.num_samples - position:
                raise AudioError(
                    f"{path}: {len(clip)} samples do not fit at sample {position} of the {self.num_samples} of its "
                    f"recipe: restore the clip, or remove the row from {self.folder / RECIPE}"
                )
            clip[:fade] *= ramp
            clip[-fade:] *= ramp[::-1]
            out[position : position + len(clip)] += clip
            position += len(clip)
        # The legacy generator: the recipes were made with it, and its stream never changes.
        noise = np.random.RandomState(self.noise_seed).standard_normal(self.num_samples)
        out += noise * INT16_SCALE * 10 ** (self.noise_dbfs / 20)
        return np.clip(np.round(out), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)

    def samples(self, sample_rate: int) -> Float[np.ndarray, "samples"]:
        return resample(self.render().astype(np.float32) / INT16_SCALE, self.sample_rate, sample_rate)


@functools.lru_cache(maxsize=4096)
def _clip(path: pathlib.Path, sample_rate: int) -> np.ndarray:
    try:
        audio_seconds(path)  # which raises for one that is cut
        clip, rate = soundfile.read(path, dtype="int16")
    except (OSError, soundfile.SoundFileError, AudioError) as error:
        raise AudioError(
            f"{path} cannot be read ({error}): restore the clip, or remove the recipes that use it"
        ) from None
    if rate != sample_rate or clip.ndim != 1:
        raise AudioError(f"{path} must be mono at {sample_rate} Hz, as its recipe says: restore the clip")
    clip.flags.writeable = False  # it is shared
    return clip


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One transcribed utterance."""

    id: str
    text: str  # as `normalise` spells it; may be empty
    speaker: str  # "" if unknown
    split: str  # "" where the source names none and none is drawn yet
    duration: float  # seconds, as declared, else as its file has; NaN where that cannot be read
    audio: Audio

    def samples(self, sample_rate: int) -> Float[np.ndarray, "samples"]:
        """Mono float32 samples in [-1, 1) at `sample_rate` Hz. Raises AudioError where there are none."""
        return self.audio.samples(sample_rate)


def load_manifest(
    path: str | pathlib.Path, level: str = "basic", say: Callable[[str], object] = lambda line: None
) -> list[Utterance]:
    """The utterances that `read_utterances` yields, each with a split: a drawn one where none is named.

    Args:
        say: is given a line about splits that were drawn.

    Raises:
        DataError: as `read_utterances`, and for an id that occurs twice.
    """
    utterances, seen, draw = list(read_utterances(path, level)), set(), Draw()
    for utterance in utterances:
        if utterance.id in seen:
            raise DataError(f"{path}: id {utterance.id!r} occurs more than once: give each row an 'id' of its own")
        seen.add(utterance.id)
        draw.add(utterance.id, utterance.speaker, utterance.split)
    utterances = [settle(draw, utterance) for utterance in utterances]
    if not draw.named:
        counts = ", ".join(f"{count} {split}" for split, count in Counter(u.split for u in utterances).items())
        say(f"{path}: no row names a split, drawn by {'speaker' if draw.by_speaker else 'id'}: {counts}")
    return utterances


def settle(draw: Draw, utterance: Utterance) -> Utterance:
    """An utterance of a draw with its split."""
    split = draw.split_of(utterance.id, utterance.speaker, utterance.split)
    return utterance if split == utterance.split else dataclasses.replace(utterance, split=split)


def read_utterances(path: str | pathlib.Path, level: str = "basic") -> Iterator[Utterance]:
    """The utterances of a JSONL manifest or of a folder, in the order of the files; one chapter at most is in memory.

    A manifest has one JSON object a line: `audio` (or NeMo's `audio_filepath`; relative to the manifest's folder),
    `text`, and optionally `duration` in seconds (default: that of the file), `id` (the name of the audio file without
    its ending), `speaker` (""), `split` (""). A folder is a pack (`manifest.jsonl`, and `recipe_train.jsonl` where
    there is one) or has LibriSpeech's layout (SPLIT/SPEAKER/CHAPTER/*.trans.txt beside FLAC files; Panayotov et al.,
    2015). Texts are spelled as `normalise` does at `level`.

    Audio that is missing is not an error here. Raises DataError for anything else that cannot be used.
    """
    path = pathlib.Path(path)
    empty = f"{path} has no utterances: add a line for each, or choose another data.source"
    if not path.exists():
        raise DataError(f"{path} does not exist: point data.source at a JSONL manifest or a folder of speech")
    if not path.is_dir():
        rows = _read_rows(path, level)
    elif (path / MANIFEST).is_file():
        files = [file for file in (path / MANIFEST, path / RECIPE) if file.is_file()]
        rows = (utterance for file in files for utterance in _read_rows(file, level))
    else:
        rows = (utterance for file in _transcripts(path.resolve()) for utterance in _read_transcripts(file, level))
        empty = (
            f"{path} has neither {MANIFEST} nor LibriSpeech transcripts (SPLIT/SPEAKER/CHAPTER/*{TRANSCRIPTS}): "
            "point data.source at a folder that has one of them, or at a JSONL manifest"
        )
    utterance = None
    try:
        for utterance in rows:
            yield utterance
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{error.filename or path} cannot be read ({reason}): correct its permissions") from None
    if utterance is None:
        raise DataError(empty)


def to_row(utterance: Utterance) -> dict[str, Any]:
    """The manifest's row of an utterance that is read from files, with their paths as they are."""
    match utterance.audio:
        case AudioFile(path):
            audio = {"audio": str(path)}
        case Recipe() as recipe:
            audio = dataclasses.asdict(recipe) | {"folder": str(recipe.folder)}
        case other:
            raise TypeError(f"{type(other).__name__} is not in files")
    values = {name: getattr(utterance, name) for name in ("id", "text", "speaker", "split", "duration")}
    if math.isnan(utterance.duration):
        del values["duration"]
    return values | audio


def _read_rows(path: pathlib.Path, level: str) -> Iterator[Utterance]:
    for number, line in read_lines(path, DataError):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError("not a JSON object")
            utterance = _utterance(row, path.parent, level)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}: correct the line or remove it") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error}): write one JSON object a line") from None
        yield utterance


def _utterance(row: dict[str, Any], folder: pathlib.Path, level: str) -> Utterance:
    if "segments" in row:
        audio = Recipe(
            folder=folder / _string(row, "folder", ""),
            segments=_segments(row),
            lead=_count(row, "lead"),
            num_samples=_count(row, "num_samples"),
            noise_seed=_count(row, "noise_seed"),
            noise_dbfs=_number(row, "noise_dbfs"),
            sample_rate=_count(row, "sample_rate"),
        )
        if not audio.sample_rate:
            raise DataError("'sample_rate' must not be 0")
        id = _string(row, "id")
    else:
        name = _string(row, "audio_filepath" if "audio" not in row and "audio_filepath" in row else "audio")
        audio = AudioFile(folder / name)
        id = _string(row, "id", audio.path.stem)
    text = normalise(_string(row, "text"), level)
    duration = _seconds_of(audio) if row.get("duration") is None else _number(row, "duration")
    # An offset of 0 may begin such a part: then the file is longer.
    if row.get("offset") or ("offset" in row and duration < _seconds_of(audio) - _LONGER_SECONDS):
        raise DataError("'offset' (a part of a longer file) is not supported, cut the file")
    if duration <= 0:
        raise DataError(f"'duration' is {duration}, not a positive number of seconds")
    return Utterance(id, text, _string(row, "speaker", ""), _string(row, "split", ""), duration, audio)


def _seconds_of(audio: AudioFile | Recipe) -> float:
    """The duration of audio; NaN for a file that cannot be read, which is reported when the audio is needed."""
    if isinstance(audio, Recipe):
        return audio.num_samples / audio.sample_rate
    try:
        return audio_seconds(audio.path)
    except (AudioError, OSError):
        return math.nan


def _segments(row: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    match row["segments"]:
        case [*segments] if all(
            isinstance(s, list) and len(s) == 2 and isinstance(s[0], str) and type(s[1]) is int and s[1] >= 0
            for s in segments
        ):
            return tuple((name, gap) for name, gap in segments)
    raise DataError("'segments' must be a list of [clip, gap in samples]")


def _string(row: dict[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str):
        raise DataError(f"{key!r} is missing" if key not in row else f"{key!r} is {value!r}, not a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{key!r} is {value!r}, which holds half a character")
    return value


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    raise DataError(f"{key!r} is missing" if key not in row else f"{key!r} is {value!r}, not a number")


def _count(row: dict[str, Any], key: str) -> int:
    value = _number(row, key)
    if value < 0 or not value.is_integer():
        raise DataError(f"{key!r} is {row[key]!r}, not a whole number of at least 0")
    return int(value)


def _transcripts(folder: pathlib.Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[pathlib.Path]:
    """The transcripts below a folder, in the order of their names; one folder's names at a time are in memory.

    Follows links, but to none of the folders `above`: it would never end.
    """
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in above:
        return
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _transcripts(pathlib.Path(entry), (*above, here))
        elif entry.name.endswith(TRANSCRIPTS):
            yield pathlib.Path(entry)


def _read_transcripts(path: pathlib.Path, level: str) -> Iterator[Utterance]:
    """The utterances of one chapter: lines "ID TEXT", and ID.flac beside the file."""
    chapter = path.parent
    speaker, split = chapter.parent.name, chapter.parent.parent.name
    for _, line in read_lines(path, DataError):
        if not line.strip():
            continue
        id, *words = line.split()
        id = visible(id)
        audio = AudioFile(chapter / f"{id}.flac")
        yield Utterance(id, normalise(" ".join(words), level), speaker, split, _seconds_of(audio), audio)
