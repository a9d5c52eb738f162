"""The work lists of a preparation: which utterances each shard will hold, in which order.

The source is read once, line by line, and sorted on disk by split and length. What is held in memory is bounded: lines
that wait to be written, a sample of transcripts, a range of the hashes of ids.
"""

import collections
import dataclasses
import heapq
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from conformer import system
from conformer.data.buckets import Reason
from conformer.data.manifest import DataError, Utterance, read_utterances, settle, to_row
from conformer.data.records import SUMMARY, UNFINISHED, length_step
from conformer.data.splits import Draw, hash_of

MAX_SECONDS = 120.0  # of an utterance: one is held in memory as a whole
NUM_TEXTS = 100_000  # transcripts of a split that a tokenizer is derived from
DROPPED = "dropped.jsonl"
_PLAN = "plan.json"
_LENGTHS = "lengths"  # folder of SPLIT/STEP, which hold what is not in work lists yet
_TOO_LONG = f"longer than {MAX_SECONDS:g} s: cut it"
_SPOOL_BYTES = 16 << 20  # of lines that wait to be written
_IDS_AT_ONCE = 1 << 20  # hashes of ids compared at once, about
_SHOWN = 100  # hashes of repeated ids that are looked up


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that decide the content of a prepared corpus."""

    source: str  # a manifest, pack or LibriSpeech folder
    sample_rate: int = 16_000  # Hz
    shard_hours: float = 4.0  # audio in a shard, about


@dataclasses.dataclass(frozen=True)
class WorkLists:
    """The work to do: a manifest for each shard."""

    folder: pathlib.Path  # of the prepared corpus
    settings: Settings
    names: tuple[str, ...]  # of the shards
    seconds: float

    @property
    def work(self) -> pathlib.Path:
        """The folder of the lists, and of what else is not finished."""
        return self.folder / UNFINISHED

    def list(self, name: str) -> pathlib.Path:
        """The manifest of a shard."""
        return self.work / f"{name}.jsonl"

    def discard(self) -> None:
        """Removes the lists: the plan first, since without it the rest is not trusted."""
        (self.work / _PLAN).unlink()
        shutil.rmtree(self.work)


def make_work_lists(
    settings: Settings, folder: pathlib.Path, say: Callable[[str], object] = lambda line: None
) -> WorkLists:
    """Reads the source once and writes the work lists. Those that are complete stand.

    `say` is given a line about splits that were drawn.

    Raises DataError for a source that cannot be used, ids that occur twice, or a folder with anything else in it.
    """
    work = folder / UNFINISHED
    plan = work / _PLAN
    if plan.exists():
        values = json.loads(plan.read_bytes())
        check_settings(Settings(**values["settings"]), settings, folder)
    else:
        if folder.is_dir() and any(folder.iterdir()) and not (work.exists() or (folder / SUMMARY).exists()):
            raise DataError(f"{folder} holds other files: name a folder that is new or empty")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        seconds = _sort(settings.source, work, say)
        names = [name for split in sorted(seconds) for name in _cut(work, split, seconds[split], settings.shard_hours)]
        if not names:
            raise DataError(f"{settings.source}: no utterance can be used: {work / DROPPED} says why")
        shutil.rmtree(work / _LENGTHS)
        values = {"settings": dataclasses.asdict(settings), "names": names, "seconds": sum(seconds.values())}
        write_json(plan, values)
    return WorkLists(folder, settings, tuple(values["names"]), values["seconds"])


def check_settings(stored: Settings, settings: Settings, folder: pathlib.Path) -> None:
    """Raises DataError where a folder belongs to a preparation with others."""
    for field in dataclasses.fields(Settings):
        if (value := getattr(stored, field.name)) != getattr(settings, field.name):
            raise DataError(
                f"{folder} belongs to a preparation with {field.name}={value}: choose another folder, or delete it"
            )


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a file that is there as a whole or not at all; a line a key, and a line an object of a list."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f" {json.dumps(key)}: {text}")
    system.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def json_line(values: dict[str, Any]) -> bytes:
    """One line of a JSONL file."""
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def dropped_row(utterance: Utterance, reason: str, message: str = "") -> dict[str, str]:
    """Returns the row of `dropped.jsonl` for an utterance."""
    return {"id": utterance.id, "split": utterance.split, "reason": reason, "message": message}


class _Spool:
    """Lines for many files, none of which stays open."""

    def __init__(self):
        self._lines: dict[pathlib.Path, list[bytes]] = collections.defaultdict(list)
        self._bytes = 0

    def write(self, path: pathlib.Path, line: bytes) -> None:
        self._lines[path].append(line)
        self._bytes += len(line)
        if self._bytes > _SPOOL_BYTES:
            self.flush()

    def flush(self) -> None:
        for path, lines in self._lines.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.writelines(lines)
        self._lines.clear()
        self._bytes = 0


def _sort(source: str, work: pathlib.Path, say: Callable[[str], object]) -> dict[str, float]:
    """Sorts the source by split and length, writes what is dropped, and returns the seconds of each split."""
    spool, seconds = _Spool(), collections.defaultdict(float)
    texts: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)  # heaps of the smallest hashes of ids
    (work / DROPPED).touch()
    for utterance in _read(pathlib.Path(source).absolute(), work / "undrawn", say):
        key = hash_of(utterance.id)
        spool.write(work / "ids", key.to_bytes(8, "little"))
        if reason := _unusable(utterance):
            spool.write(work / DROPPED, json_line(dropped_row(utterance, reason)))
            continue
        if not re.fullmatch(r"[\w.-]*\w", utterance.split):
            raise DataError(f"{utterance.id}: split {utterance.split!r} must be of letters, digits, '_', '.' and '-'")
        step = length_step(utterance.duration)
        spool.write(work / _LENGTHS / utterance.split / f"{step:06}", json_line(to_row(utterance)))
        seconds[utterance.split] += utterance.duration
        heap = texts[utterance.split]
        if len(heap) < NUM_TEXTS:
            heapq.heappush(heap, (-key, utterance.text))
        elif -key > heap[0][0]:
            heapq.heapreplace(heap, (-key, utterance.text))
    spool.flush()
    _check_distinct(work / "ids", source)
    (work / "ids").unlink()
    for split, heap in texts.items():
        lines = [text + "\n" for _, text in sorted(heap, reverse=True)]
        (work / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return dict(seconds)


def _read(source: pathlib.Path, undrawn: pathlib.Path, say: Callable[[str], object]) -> Iterator[Utterance]:
    """The utterances of a source. Those that name no split wait in a file until one can be drawn for each."""
    draw, spool = Draw(), _Spool()
    for utterance in read_utterances(source, "none"):
        draw.add(utterance.id, utterance.speaker, utterance.split)
        if utterance.split:
            yield utterance
        else:
            spool.write(undrawn, json_line(to_row(utterance)))
    spool.flush()
    if undrawn.exists():
        if not draw.named:
            say(f"no row names a split, they are drawn by {'speaker' if draw.by_speaker else 'id'}")
        yield from (settle(draw, utterance) for utterance in read_utterances(undrawn, "none"))
        undrawn.unlink()


def _unusable(utterance: Utterance) -> str | None:
    if not utterance.duration > 0:
        return Reason.UNREADABLE
    if not utterance.text:
        return Reason.EMPTY
    return _TOO_LONG if utterance.duration > MAX_SECONDS else None


def _check_distinct(path: pathlib.Path, source: str) -> None:
    """Raises DataError if an id occurs twice. Hashes of them are compared, a range at a time, then the ids."""
    count = path.stat().st_size // 8
    ranges = -(-count // _IDS_AT_ONCE)
    repeated = set()
    for number in range(ranges):
        low, high = (number << 64) // ranges, ((number + 1 << 64) // ranges) - 1
        chosen = []
        with path.open("rb") as file:
            while len(keys := np.fromfile(file, "<u8", _IDS_AT_ONCE)):
                chosen.append(keys[(keys >= np.uint64(low)) & (keys <= np.uint64(high))])
        keys = np.sort(np.concatenate(chosen))
        repeated.update(keys[1:][keys[1:] == keys[:-1]][:_SHOWN].tolist())
        if len(repeated) >= _SHOWN:
            break
    seen = set()
    for utterance in read_utterances(pathlib.Path(source).absolute()) if repeated else ():
        if hash_of(utterance.id) in repeated:
            if utterance.id in seen:
                raise DataError(
                    f"{source}: id {utterance.id!r} occurs more than once: give each row an 'id' of its own"
                )
            seen.add(utterance.id)


def _cut(work: pathlib.Path, split: str, seconds: float, shard_hours: float) -> list[str]:
    """Writes the work lists of a split, about equal in length, and returns their names."""
    count = max(1, math.ceil(seconds / (3600 * shard_hours)))
    spool, names, done = _Spool(), [], 0.0
    for path in sorted((work / _LENGTHS / split).iterdir()):
        with path.open("rb") as lines:
            for line in lines:
                if done >= seconds * len(names) / count:
                    names.append(f"{split}-{len(names):05}")
                spool.write(work / f"{names[-1]}.jsonl", line)
                done += json.loads(line)["duration"]
    spool.flush()
    return names
