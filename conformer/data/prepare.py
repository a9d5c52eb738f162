"""Preparation of a corpus of any size, in constant memory: `records.py` says what it leaves.

Shards know nothing of each other: any number of processes make them, one that is complete is never made again, and its
bytes depend neither on when a preparation was stopped nor on the number of processes.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import soundfile

from conformer import system
from conformer.audio import AudioError, float_to_pcm16
from conformer.data.buckets import check_length
from conformer.data.manifest import DataError, Utterance, read_utterances
from conformer.data.records import (
    FORMAT,
    STEP,
    SUMMARY,
    UNFINISHED,
    Shard,
    damaged,
    length_step,
    missing,
    pack,
    read_summary,
    write_records,
)
from conformer.data.worklists import (
    DROPPED,
    Settings,
    WorkLists,
    check_settings,
    dropped_row,
    json_line,
    write_json,
)

_BROKEN = "the audio cannot be used"
_MANY = 100  # if not one of so many can be read, the fault is not theirs


def is_finished(settings: Settings, folder: pathlib.Path) -> bool:
    """Returns whether `folder` holds the whole prepared corpus, as far as the sizes of its files tell.

    Raises DataError if it holds another.
    """
    if not (folder / SUMMARY).exists():
        return False
    summary = read_summary(folder)
    check_settings(Settings(**summary["settings"]), settings, folder)
    complete = all(_has_size(folder / shard.file, shard.bytes) for shard in summary["shards"])
    return complete and not (folder / UNFINISHED).exists()


def fill(lists: WorkLists, num_workers: int = 1) -> Iterator[tuple[Shard, bool]]:
    """Makes the shards that are not there yet, and yields all, each when it is there, with whether it is new.

    Raises DataError for a shard that cannot be written, or where nothing can be read.
    """
    if num_workers == 1:
        yield from (fill_shard(lists, name) for name in lists.names)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _end_with_parent) as pool:
        tasks = [pool.submit(fill_shard, lists, name) for name in lists.names]
        try:
            for task in concurrent.futures.as_completed(tasks):
                yield task.result()
        except concurrent.futures.BrokenExecutor:
            raise DataError(
                "a process was killed: give it memory, or start fewer (--num-workers), and run the command again; "
                "finished shards stand"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def finish(lists: WorkLists) -> dict[str, Any]:
    """Writes dropped.jsonl and, last, summary.json; returns what that holds. All shards must be there."""
    folder, work = lists.folder, lists.work
    shards, speakers, reasons, lengths = [], collections.defaultdict(set), collections.Counter(), collections.Counter()
    splits = collections.defaultdict(lambda: {"utterances": 0, "hours": 0.0, "speakers": 0})
    with (work / "dropped.partial").open("wb") as file, (work / DROPPED).open("rb") as unusable:
        for line in unusable:
            reasons[json.loads(line)["reason"]] += 1
            file.write(line)
        for name in lists.names:
            made = json.loads((folder / f"{name}.json").read_bytes())
            for row in made["dropped"]:
                reasons[row["reason"]] += 1
                file.write(json_line(row))
            shard = made["shard"]
            shards.append(shard)
            speakers[shard["split"]].update(made["speakers"])
            split = splits[shard["split"]]
            split["utterances"] += shard["utterances"]
            split["hours"] += shard["seconds"] / 3600
            split["speakers"] = len(speakers[shard["split"]])
            for step, count, _ in shard["steps"]:
                lengths[math.ceil(round(step * STEP, 6))] += count
    (work / "dropped.partial").replace(folder / DROPPED)
    for file in work.glob("*.txt"):
        file.replace(folder / file.name)
    packages = {name: importlib.metadata.version(name) for name in ("array_record", "soundfile", "soxr")}
    summary = {
        "format": FORMAT,
        "settings": dataclasses.asdict(lists.settings),
        "utterances": sum(split["utterances"] for split in splits.values()),
        "hours": sum(split["hours"] for split in splits.values()),
        "speakers": len(set().union(*speakers.values())),
        "bytes": sum(shard["bytes"] for shard in shards),
        "dropped": dict(sorted(reasons.items())),
        "splits": splits,
        "utterances_up_to_seconds": {str(seconds): lengths[seconds] for seconds in sorted(lengths)},
        "versions": packages | {"libsndfile": soundfile.__libsndfile_version__},
        "shards": shards,
    }
    write_json(folder / SUMMARY, summary)
    names = set(lists.names)
    for pattern in ("*-?????.arrayrecord", "*-?????.json", "*.arrayrecord.*.partial"):
        for file in folder.glob(pattern):
            if file.stem not in names:  # of the source as it was once, or left by a kill
                file.unlink()
    lists.discard()
    return summary


def verify(folder: pathlib.Path) -> Iterator[tuple[Shard, str]]:
    """Reads each shard, and yields it with what is wrong with it: "" if its checksum holds."""
    for shard in read_summary(folder)["shards"]:
        path = folder / shard.file
        if not path.is_file():
            yield shard, str(missing(path))
        elif _sha256(path) != shard.sha256:
            yield shard, str(damaged(path, f"its checksum differs from the one in {SUMMARY}"))
        else:
            yield shard, ""


def fill_shard(lists: WorkLists, name: str) -> tuple[Shard, bool]:
    """Makes a shard, unless it is there already: the shard, and whether it is new. Raises DataError as `fill` does."""
    rows = lists.list(name)
    path, note = lists.folder / f"{name}.arrayrecord", lists.folder / f"{name}.json"
    digest = _sha256(rows)
    if note.exists():
        made = json.loads(note.read_bytes())
        shard = Shard.from_json(made["shard"])
        if made["work"] == digest and _has_size(path, shard.bytes):
            return shard, False
    content = _Content(lists.settings.sample_rate)
    try:
        with system.replacing(path) as partial:
            write_records(partial, content.records(rows))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            size, sha256 = partial.stat().st_size, _sha256(partial)
    except RuntimeError as error:  # ArrayRecord's
        raise DataError(f"{path} cannot be written ({error}): free some space and run the command again") from None
    steps = tuple((step, count, round(seconds, 3)) for step, (count, seconds) in sorted(content.steps.items()))
    utterances, seconds = (sum(column) for column in zip(*content.steps.values(), strict=True)) if steps else (0, 0.0)
    shard = Shard(name, name.rpartition("-")[0], utterances, round(seconds, 3), size, sha256, steps)
    made = {"shard": dataclasses.asdict(shard), "work": digest}
    write_json(note, made | {"speakers": sorted(content.speakers), "dropped": content.dropped})
    return shard, True


class _Content:
    """The records of a shard, and what is noted while they are made."""

    def __init__(self, sample_rate: int):
        self._sample_rate = sample_rate
        self.steps: dict[int, tuple[int, float]] = {}  # (utterances, seconds) by length step
        self.speakers: set[str] = set()
        self.dropped: list[dict[str, str]] = []

    def records(self, rows: pathlib.Path) -> Iterator[bytes]:
        for utterance in read_utterances(rows, "none"):
            step = length_step(utterance.duration)
            try:
                samples = utterance.samples(self._sample_rate)
                check_length(utterance, len(samples) / self._sample_rate, step * STEP)
            except (AudioError, OSError) as error:
                self._drop(utterance, error)
                continue
            count, seconds = self.steps.get(step, (0, 0.0))
            self.steps[step] = count + 1, seconds + utterance.duration
            self.speakers.update({utterance.speaker} - {""})
            yield pack(utterance, float_to_pcm16(samples), self._sample_rate)

    def _drop(self, utterance: Utterance, error: Exception) -> None:
        self.dropped.append(dropped_row(utterance, _BROKEN, str(error)))
        if len(self.dropped) == _MANY and not self.steps:
            raise DataError(f"not one of {_MANY} utterances can be read: is the source there? The last: {error}")


def _end_with_parent() -> None:
    """Ends this process when the one that started it has gone, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback
    parent = multiprocessing.parent_process()

    def watch():
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _has_size(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
