"""Prepared corpora: speech of any amount in sharded ArrayRecord files, read one utterance at a time.

A folder that `prepare.py` has written holds

    summary.json                what there is: totals, what was dropped and why, and each shard's size and checksum
    SPLIT-00000.arrayrecord     utterances, ascending in length by tenths of a second; so are the shards of a split
    SPLIT-00000.json            how the shard was made, for preparation to resume
    SPLIT.txt                   a bounded sample of transcripts, for the tokenizer
    dropped.jsonl               id, split, reason and message of each utterance that was left out

A record is the length of its header (four bytes, little endian), the header (JSON: id, text, speaker, duration) and the
audio: mono, 16 bits, in FLAC. Texts are as the source has them: they are spelled when they are read. Memory grows with
the number of shards, not with that of utterances.
"""

import bisect
import dataclasses
import functools
import importlib
import io
import itertools
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import soundfile

from conformer.audio import resample
from conformer.data.manifest import DataError, Utterance
from conformer.text import normalise
from kernels.typing import Float, Int

SUMMARY = "summary.json"
UNFINISHED = "unfinished"  # folder of a preparation that has not come to its end
STEP = 0.1  # seconds; lengths are told apart by steps of this
FORMAT = 2  # of the folder; raised when an older reader would fail
_OPEN_SHARDS = 256  # readers kept open: a process may have 1024 files
_LENGTH = struct.Struct("<I")


def length_step(seconds: float) -> int:
    """k for lengths in ((k - 1) STEP, k STEP]."""
    return math.ceil(round(seconds / STEP, 6))


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a prepared corpus."""

    name: str  # of the file, without its ending
    split: str
    utterances: int
    seconds: float
    bytes: int
    sha256: str
    steps: tuple[tuple[int, int, float], ...]  # (length step, utterances, seconds), ascending

    @property
    def file(self) -> str:
        return f"{self.name}.arrayrecord"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Shard":
        steps: Any = tuple((step, count, seconds) for step, count, seconds in values["steps"])
        return cls(**values | {"steps": steps})


def write_records(path: pathlib.Path, records: Iterable[bytes]) -> None:
    """Writes a file that gives each record by its index; the same records make the same bytes."""
    writer = _array_record().ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # FLAC is compressed already
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()


def pack(utterance: Utterance, samples: Int[np.ndarray, "samples"], sample_rate: int) -> bytes:
    """The record of an utterance from its int16 samples."""
    keys = ("id", "text", "speaker", "duration")
    header = json.dumps({key: getattr(utterance, key) for key in keys}, ensure_ascii=False).encode()
    audio = io.BytesIO()
    soundfile.write(audio, samples, sample_rate, format="FLAC", subtype="PCM_16", compression_level=0.5)
    return _LENGTH.pack(len(header)) + header + audio.getvalue()


@dataclasses.dataclass(frozen=True)
class Record:
    """Speech in a shard. It is read when it is asked for, so that a list of utterances stays small."""

    shard: pathlib.Path
    num_records: int  # of the shard
    index: int

    def header(self) -> dict[str, Any]:
        """The utterance's id, text, speaker and duration. Raises DataError for a shard that is damaged."""
        record = _read(self)
        return json.loads(record[_LENGTH.size : _audio_offset(record)])

    def samples(self, sample_rate: int) -> Float[np.ndarray, "samples"]:
        """Mono float32 samples in [-1, 1) at `sample_rate` Hz. Raises DataError for a shard that is damaged."""
        record = _read(self)
        samples, rate = soundfile.read(io.BytesIO(record[_audio_offset(record) :]), dtype="float32")
        return resample(samples, rate, sample_rate)


def _audio_offset(record: bytes) -> int:
    return _LENGTH.size + _LENGTH.unpack_from(record)[0]


@functools.lru_cache(maxsize=4)  # the header, and then the audio
def _read(record: Record) -> bytes:
    reader = _open(record.shard, record.num_records)
    try:
        return reader.read([record.index])[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise damaged(record.shard, str(error).partition(" (")[0]) from None


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _open(shard: pathlib.Path, num_records: int) -> Any:
    if not shard.is_file():
        raise missing(shard)
    reader = _array_record().ArrayRecordReader(str(shard), "readahead_buffer_size:0", file_reader_buffer_size=1 << 15)
    if (count := reader.num_records()) != num_records:  # 0 for a file that has lost its end
        raise damaged(shard, f"{count} of its {num_records} records can be found")
    return reader


def _array_record() -> Any:
    """The library, imported when it is used: Windows has none, and does without prepared corpora."""
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError:
        raise DataError(
            "prepared corpora need the package array_record, which has no wheel for Windows: name a manifest"
        ) from None


_REMEDY = "run the command that prepared the corpus again, it makes the shards anew that are not there"


def missing(shard: pathlib.Path) -> DataError:
    """The error for a shard that is not there."""
    return DataError(f"{shard} is missing: {_REMEDY}")


def damaged(shard: pathlib.Path, reason: str) -> DataError:
    """The error for a shard whose content is not what was written."""
    return DataError(f"{shard} is damaged ({reason}): delete it and {_REMEDY}")


def read_summary(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content of `summary.json`. Raises DataError for one that cannot be used."""
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_bytes())
        if summary["format"] != FORMAT:
            raise DataError(f"{path} has format {summary['format']}, this version reads {FORMAT}: prepare it again")
        return summary | {"shards": [Shard.from_json(shard) for shard in summary["shards"]]}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a summary of prepare.py ({error!r}): prepare the corpus again") from None


class Corpus:
    """Splits of a prepared corpus in one order, ascending in length by STEP; an utterance is read when it is asked for.

    Attributes:
        splits: the splits of the corpus, whether they are in the order or not.
    """

    def __init__(self, folder: str | pathlib.Path, splits: Iterable[str] | None = None, level: str = "basic"):
        """Opens `splits`, by default all. Reads the summary alone. Raises DataError where that cannot be used.

        Args:
            level: of `normalise`, at which texts are spelled.
        """
        self._folder, self._level = pathlib.Path(folder), level
        summary = read_summary(self._folder)
        self.splits = tuple(summary["splits"])
        self._chosen = self.splits if splits is None else tuple(splits)
        self._shards = shards = [shard for shard in summary["shards"] if shard.split in self._chosen]
        # A run is what a shard holds of one length: (step, shard, index in the shard of its first).
        runs, sizes = [], []
        for shard in shards:
            first = 0
            for step, count, seconds in shard.steps:
                runs.append((step, shard, first))
                sizes.append((count, seconds))
                first += count
        order = sorted(range(len(runs)), key=lambda run: runs[run][0])
        self._runs = [runs[run] for run in order]
        self._ends = list(itertools.accumulate(sizes[run][0] for run in order))
        self._seconds = [0.0, *itertools.accumulate(sizes[run][1] for run in order)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Utterance:
        """Raises IndexError, and DataError for a shard that is missing or damaged."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        run = bisect.bisect_right(self._ends, index)
        _, shard, first = self._runs[run]
        position = first + index - (self._ends[run - 1] if run else 0)
        record = Record(self._folder / shard.file, shard.utterances, position)
        header = record.header()
        text = normalise(header.pop("text"), self._level)
        return Utterance(split=shard.split, text=text, audio=record, **header)

    def __iter__(self) -> Iterator[Utterance]:
        return map(self.__getitem__, range(len(self)))

    def of_splits(self, splits: Iterable[str]) -> "Corpus":
        """Returns the corpus of some splits."""
        return Corpus(self._folder, splits, self._level)

    def checksums(self) -> list[str]:
        """Returns the SHA-256 of each shard."""
        return [shard.sha256 for shard in self._shards]

    def num_within(self, seconds: float) -> int:
        """Counts the utterances before the first length step that may hold longer ones than `seconds`."""
        runs = bisect.bisect_right(self._runs, seconds + 1e-6, key=lambda run: run[0] * STEP)
        return self._ends[runs - 1] if runs else 0

    def lengths(self) -> list[tuple[float, int]]:
        """(most seconds, utterances) of each length step, ascending."""
        starts = [0, *self._ends[:-1]]
        return [(run[0] * STEP, end - start) for run, start, end in zip(self._runs, starts, self._ends, strict=True)]

    def seconds(self, stop: int) -> float:
        """Audio of the first `stop` utterances, where a length step ends."""
        return self._seconds[bisect.bisect_left(self._ends, stop) + 1] if stop else 0.0

    def texts(self) -> list[str]:
        """A bounded sample of the transcripts: all of a small corpus."""
        paths = [self._folder / f"{split}.txt" for split in self._chosen]
        lines = [text for path in paths if path.exists() for text in path.read_text(encoding="utf-8").splitlines()]
        return [normalise(line, self._level) for line in lines]


Utterances = Sequence[Utterance] | Corpus
