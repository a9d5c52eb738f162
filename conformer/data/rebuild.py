"""Rebuilds the packs that the results name from the public data sets, by the lists in speech/lists.

The lists name utterances, speakers and splits, and hold no speech. speech/README.md says how far a rebuilt pack equals
the pack that was measured.
"""

import csv
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soundfile

from conformer import system
from conformer.audio import AudioError, audio_seconds
from conformer.data.commands import clip_name
from conformer.data.manifest import MANIFEST, TRANSCRIPTS, DataError
from conformer.text import normalise, read_lines

LISTS = pathlib.Path(__file__).parents[2] / "speech" / "lists"
_MOST_MISSING = 0.05  # share of a list; more is another version of the data, or a part of it
_RATE = 16_000  # Hz, of both sources
_LEAST_GAP = 800  # samples between two clips of a string, before it and behind it: 50 ms
_EDGE_DB, _EDGE_SAMPLES = 30, 480  # a clip is cut where it is so far below its loudest, and this much more is kept


def rebuild_libri_mini(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the manifest of libri_mini; its audio stays in `source`, a folder with LibriSpeech's splits."""
    rows, missing = [], []
    for listed in _read_list("libri_mini.tsv"):
        speaker, _, chapter = listed["chapter"].partition("-")
        folders = sorted(source.glob(f"*/{speaker}/{chapter}"))
        texts = dict(_transcripts(folders[0])) if folders else {}
        for id in _ids(listed["chapter"], listed["utterances"]):
            try:
                path = folders[0] / f"{id}.flac"
                row = {
                    "id": id,
                    "audio": os.path.relpath(path, out),
                    "duration": audio_seconds(path),
                    "text": texts[id],
                }
                rows.append(row | {"speaker": f"libri-{speaker}", "split": listed["split"]})
            except (AudioError, IndexError, KeyError):
                missing.append(id)
    _write(rows, missing, source, out, "download mini_librispeech and librispeech-100 into it")


def rebuild_words(source: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the clips of connected_words_16k and a manifest whose rows join them, from a Speech Commands folder.

    Train clips have the recorded lengths, each where the clip has most energy, and train strings the recorded gaps and
    noise. Of dev and test strings the words, the speaker and the length are recorded; takes and gaps are drawn.
    """
    clips, lengths, rows, missing = _Clips(source, out), {}, [], []
    for listed in _read_list("words_clips.tsv"):
        word, speaker, take = listed["word"], listed["speaker"], listed["take"]
        id, length = f"sc-{word}-{speaker}-{take}", int(listed["samples"])
        if clips.write(word, speaker, take, lambda clip, length=length: _loudest(clip, length)) is None:
            missing.append(id)
            continue
        lengths[word, speaker, take] = length
        row = {"id": id, "audio": clips.name(word, speaker, take), "duration": length / _RATE, "text": word}
        rows.append(row | {"speaker": f"sc-{speaker}", "split": "train"})
    for number, listed in enumerate(_read_list("words_train.tsv")):
        id, speaker, (first, *rest) = f"words-train-{number:05d}", listed["speaker"], listed["clips"].split()
        takes = [tuple(name.split("-")) for name in (first, *rest[1::2])]
        keys = [(word, speaker, take) for word, take in takes]
        if not all(key in lengths for key in keys):
            missing.append(id)
            continue
        gaps, lead = [0, *map(int, rest[::2])], int(listed["lead"])
        size = lead + sum(gaps) + sum(lengths[key] for key in keys) + int(listed["tail"])
        noise = {"noise_seed": int(listed["noise_seed"]), "noise_dbfs": float(listed["noise_dbfs"])}
        segments = [(clips.name(*key), gap) for key, gap in zip(keys, gaps, strict=True)]
        rows.append(_string_row(id, "train", speaker, [word for word, _ in takes], segments, lead, size) | noise)
    numbers = {"dev": 0, "test": 0}
    for listed in _read_list("words_evaluation.tsv"):
        split, speaker, words = listed["split"], listed["speaker"], listed["text"].split()
        id = f"words-{split}-{numbers[split]:04d}"
        numbers[split] += 1
        draw = random.Random(id)
        if row := _evaluation_row(clips, id, split, speaker, words, int(listed["samples"]), draw):
            rows.append(row)
        else:
            missing.append(id)
    _write(rows, missing, source, out, "download speech_commands_v0.01 and name its folder")


PACKS: dict[str, tuple[Callable[[pathlib.Path, pathlib.Path], None], str]] = {  # and the config that trains on each
    "libri_mini": (rebuild_libri_mini, "configs/libri_mini.py"),
    "connected_words_16k": (rebuild_words, "configs/words.py"),
}


class _Clips:
    """Single words of Speech Commands, cut to the speech and written once."""

    def __init__(self, source: pathlib.Path, out: pathlib.Path):
        self._source, self._out = source, out

    def name(self, word: str, speaker: str, take: str) -> str:
        return f"clips/{speaker}/{word}-{take}.flac"

    def takes(self, word: str, speaker: str) -> list[str]:
        names = self._source.glob(clip_name(word, speaker, "*"))
        return sorted(name.stem.rpartition("_")[2] for name in names)

    def write(self, word: str, speaker: str, take: str, cut: Callable[[np.ndarray], np.ndarray | None]) -> int | None:
        """Writes what `cut` leaves of a clip; its number of samples, None where there is no such clip."""
        path = self._source / clip_name(word, speaker, take)
        try:
            audio_seconds(path)  # which raises for one that is cut off
            clip, rate = soundfile.read(path, dtype="int16")
        except (AudioError, OSError, soundfile.SoundFileError):
            return None
        clip = cut(clip) if rate == _RATE and clip.ndim == 1 and len(clip) else None
        if clip is None:
            return None
        target = self._out / self.name(word, speaker, take)
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, clip, _RATE, subtype="PCM_16")
        return len(clip)


def _evaluation_row(
    clips: _Clips, id: str, split: str, speaker: str, words: list[str], size: int, draw: random.Random
) -> dict[str, Any] | None:
    """A dev or test string of the recorded words and, where the drawn takes leave room for gaps, length."""
    segments, spoken = [], 0
    for word in words:
        takes = clips.takes(word, speaker)
        length = clips.write(word, speaker, take, _speech) if takes and (take := draw.choice(takes)) else None
        if length is None:
            return None
        segments.append(clips.name(word, speaker, take))
        spoken += length
    shares = [draw.random() for _ in range(len(words) + 1)]  # before the first, between two, behind the last
    free = max(0, size - spoken - _LEAST_GAP * len(shares))
    gaps = [_LEAST_GAP + int(free * share / sum(shares)) for share in shares]
    rows = [(name, gap) for name, gap in zip(segments, [0, *gaps[1:-1]], strict=True)]
    size = max(size, spoken + sum(gaps))
    row = _string_row(id, split, speaker, words, rows, gaps[0], size)
    return row | {"noise_seed": draw.randrange(2**31), "noise_dbfs": draw.uniform(-68, -52)}


def _string_row(
    id: str, split: str, speaker: str, words: list[str], segments: list[tuple[str, int]], lead: int, size: int
) -> dict[str, Any]:
    row = {"id": id, "text": " ".join(words), "speaker": f"sc-{speaker}", "split": split, "duration": size / _RATE}
    return row | {"segments": segments, "lead": lead, "num_samples": size, "sample_rate": _RATE}


def _loudest(clip: np.ndarray, length: int) -> np.ndarray | None:
    """The part of this length that has most energy."""
    if len(clip) < length:
        return None
    energy = np.concatenate([[0.0], np.cumsum(clip.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[length:] - energy[: len(energy) - length]))
    return clip[start : start + length]


def _speech(clip: np.ndarray) -> np.ndarray:
    """A clip without what is quiet before and behind its word."""
    size = _RATE // 100
    frames = np.pad(clip.astype(np.float64), (0, -len(clip) % size)).reshape(-1, size)
    energy = (frames**2).mean(axis=1)
    loud = np.flatnonzero(energy >= energy.max() * 10 ** (-_EDGE_DB / 10))
    return clip[max(0, loud[0] * size - _EDGE_SAMPLES) : (loud[-1] + 1) * size + _EDGE_SAMPLES]


def _read_list(name: str) -> list[dict[str, str]]:
    with open(LISTS / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _ids(chapter: str, ranges: str) -> Iterator[str]:
    for some in ranges.split(","):
        first, _, last = some.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{chapter}-{number:04d}"


def _transcripts(chapter: pathlib.Path) -> Iterator[tuple[str, str]]:
    for path in chapter.glob(f"*{TRANSCRIPTS}"):
        for _, line in read_lines(path, DataError):
            id, _, text = line.partition(" ")
            yield id, normalise(text)


def _write(rows: list[dict], missing: list[str], source: pathlib.Path, out: pathlib.Path, remedy: str) -> None:
    if len(missing) > _MOST_MISSING * (len(rows) + len(missing)):
        raise DataError(
            f"{source} lacks {len(missing):,} of {len(rows) + len(missing):,} utterances of the list, such as "
            f"{missing[0]}: {remedy}"
        )
    if missing:
        print(f"left out {len(missing):,} of {len(rows) + len(missing):,}, which {source} lacks: {missing[0]}, ...")
    out.mkdir(parents=True, exist_ok=True)
    system.write_text(out / MANIFEST, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{out / MANIFEST}: {len(rows):,} utterances")
