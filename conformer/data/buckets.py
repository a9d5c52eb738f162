"""Length buckets, which utterances fit them, and the plan: which utterances form the batch of a step.

A bucket has one static shape, so that a training step compiles once for each bucket. The plan is a pure function of
(seed, step): a run resumes at any step, and there is no order to save.
"""

import bisect
import collections
import dataclasses
import enum
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

import grain
import numpy as np

from conformer.audio import AudioError
from conformer.config import Config, DataConfig
from conformer.ctc import min_frames
from conformer.data.manifest import AudioFile, Utterance
from conformer.data.records import STEP, Corpus, Utterances, length_step
from conformer.tokenizer import Tokenizer, TokenizerError

# Seconds by which a declared duration may be off: manifests round. What is beyond the bucket is cut, no more than this.
DURATION_TOLERANCE = 0.02
# Buckets that are derived: a training step compiles once for each, and a batch is filled up with what it has already.
NUM_BUCKETS, UTTERANCES_PER_BUCKET = 5, 100
_SECONDS_UNKNOWN = 10.0  # a bucket for utterances of which no length is known


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static batch shape: audio [batch_size, num_samples], labels [batch_size, max_labels]."""

    seconds: float  # the longest utterance
    batch_size: int
    num_samples: int
    max_labels: int


def make_buckets(config: DataConfig, sample_rate: int) -> tuple[Bucket, ...]:
    """The buckets of `config.bucket_seconds`, ascending."""
    return tuple(make_bucket(config, sample_rate, seconds) for seconds in config.bucket_seconds)


def make_bucket(config: DataConfig, sample_rate: int, seconds: float) -> Bucket:
    """The bucket of `seconds`; it holds at least one utterance, and more as far as `config.batch_seconds` allows."""
    return Bucket(
        seconds=seconds,
        batch_size=max(1, int(config.batch_seconds // seconds)),
        num_samples=round(seconds * sample_rate),
        max_labels=math.ceil(seconds * config.max_label_rate),
    )


def with_buckets(config: Config, utterances: Utterances) -> Config:
    """The configuration with `data.bucket_seconds` for these utterances, where it has none.

    The few lengths that leave the least padding, up to the longest utterance at the lowest speed, or what
    `data.batch_seconds` holds.
    """
    if config.data.bucket_seconds:
        return config
    if isinstance(utterances, Corpus):
        lengths = dict(utterances.lengths())
    else:
        lengths = collections.Counter(u.duration for u in utterances if u.duration > 0)
    most, slowest = math.floor(config.data.batch_seconds / STEP), min(config.augment.speed_factors)
    counts = np.zeros(most + 1)
    for seconds, count in lengths.items():
        if (step := length_step(seconds / slowest)) <= most:
            counts[step] += count
    most_buckets = min(NUM_BUCKETS, 1 + int(counts.sum()) // UTTERANCES_PER_BUCKET)
    steps = _least_padding(counts, most_buckets) or [min(most, length_step(_SECONDS_UNKNOWN))]
    return config.replace({"data.bucket_seconds": tuple(round(step * STEP, 6) for step in steps)})


def _least_padding(counts: np.ndarray, most: int) -> list[int]:
    """Chooses at most `most` lengths, ascending, that `counts[n]` utterances of length n are padded to at least cost.

    Dynamic programming over the lengths that occur: the least padding of all up to a length, with one more bucket each
    time.
    """
    lengths = np.flatnonzero(counts)
    if not len(lengths):
        return []
    sums = np.concatenate([[0], np.cumsum(counts[lengths])])
    # padded[j, i]: audio of a bucket that holds the lengths from i to j
    padded = lengths[:, None] * (sums[1:, None] - sums[None, :-1])
    padded[np.triu_indices(len(lengths), 1)] = np.inf
    total, chosen = padded[:, 0], []
    for _ in range(min(most, len(lengths)) - 1):
        options = padded[:, 1:] + total[None, :-1]
        chosen.append(np.argmin(options, axis=1))
        total = options.min(axis=1)
    ends, last = [int(lengths[-1])], len(lengths) - 1
    for before in reversed(chosen):
        last = int(before[last])
        ends.append(int(lengths[last]))
    return ends[::-1]


class Reason(enum.StrEnum):
    """The reason why an utterance is not trained on."""

    MISSING = "audio file does not exist"
    UNREADABLE = "duration unknown: the audio cannot be read"
    EMPTY = "empty transcript"
    ALPHABET = "characters outside the alphabet"
    TOO_LONG = "longer than the last of data.bucket_seconds"
    TOO_MANY_LABELS = "more labels a second than data.max_label_rate"
    INFEASIBLE = "too short for its transcript under CTC"


REMEDIES = {  # what to do where too many are dropped
    Reason.MISSING: "correct the paths of the manifest, which are relative to its folder, or data.source",
    Reason.UNREADABLE: "restore the files, or remove their rows",
    Reason.EMPTY: "add the transcripts, remove the rows, or lower text.normalise",
    Reason.ALPHABET: "raise text.normalise, or train a tokenizer on all texts: choose a new --workdir",
    Reason.TOO_LONG: "cut them, or raise the last of data.bucket_seconds and, if that is more, data.batch_seconds",
    Reason.TOO_MANY_LABELS: "raise data.max_label_rate, or take longer units: tokenizer.kind=bpe",
    Reason.INFEASIBLE: "lower model.subsampling_factor, or take longer units: tokenizer.kind=bpe",
}


class UnfitError(Exception):
    """An utterance that is not trained on, for a Reason."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The conditions that an utterance must meet to be trained on.

    Attributes:
        tokenizer: makes its labels.
        buckets: ascending; the last holds the longest utterances.
        speed_factors: it must fit at each of them.
        output_frames: seconds -> number of frames that CTC gets.
    """

    tokenizer: Tokenizer
    buckets: Sequence[Bucket]
    speed_factors: Sequence[float]
    output_frames: Callable[[float], int]

    @property
    def slowest(self) -> float:
        """The speed at which an utterance is longest."""
        return min(self.speed_factors)

    def labels(self, utterance: Utterance, bucket: Bucket) -> list[int]:
        """The labels of an utterance in `bucket`. Raises UnfitError.

        They have an alignment: at the highest speed they need no more frames than there are (one each, and a blank
        between equal neighbours).
        """
        try:
            labels = self.tokenizer.encode(utterance.text)
        except TokenizerError:
            raise UnfitError(Reason.ALPHABET) from None
        shortest = max(0.0, (utterance.duration - DURATION_TOLERANCE) / max(self.speed_factors))
        if not labels:
            raise UnfitError(Reason.EMPTY)
        if len(labels) > bucket.max_labels:
            raise UnfitError(Reason.TOO_MANY_LABELS)
        if min_frames(labels) > self.output_frames(shortest):
            raise UnfitError(Reason.INFEASIBLE)
        return labels


@dataclasses.dataclass(frozen=True)
class Selection:
    """The indices of utterances that fit into bucket k, `members[k]`, and of those that fit into none, by Reason."""

    members: tuple[Sequence[int], ...]
    dropped: dict[str, Sequence[int]]
    seconds: float  # of all members


def select(utterances: Utterances, rules: Rules) -> Selection:
    """Assigns each utterance to the shortest bucket that it fits at every speed.

    Those of a prepared corpus lie in the order of their lengths. They are not looked at: their transcripts are held to
    the rules when they are read.
    """
    if isinstance(utterances, Corpus):
        return _select_by_length(utterances, rules)
    members: list[list[int]] = [[] for _ in rules.buckets]
    dropped: dict[str, list[int]] = collections.defaultdict(list)
    limits, seconds = [bucket.seconds for bucket in rules.buckets], 0.0
    for index, utterance in enumerate(utterances):
        try:
            if isinstance(utterance.audio, AudioFile) and not utterance.audio.path.exists():
                raise UnfitError(Reason.MISSING)
            if not utterance.duration > 0:
                raise UnfitError(Reason.UNREADABLE)
            number = bisect.bisect_left(limits, utterance.duration / rules.slowest - 1e-6)  # of rounding
            if number == len(limits):
                raise UnfitError(Reason.TOO_LONG)
            rules.labels(utterance, rules.buckets[number])
        except UnfitError as unfit:
            dropped[unfit.args[0]].append(index)
            continue
        members[number].append(index)
        seconds += utterance.duration
    return Selection(tuple(members), dict(dropped), seconds)


def _select_by_length(corpus: Corpus, rules: Rules) -> Selection:
    stops = [corpus.num_within(bucket.seconds * rules.slowest) for bucket in rules.buckets]
    members = tuple(itertools.starmap(range, itertools.pairwise([0, *stops])))
    too_long = range(stops[-1], len(corpus))
    return Selection(members, {Reason.TOO_LONG: too_long} if too_long else {}, corpus.seconds(stops[-1]))


def check_length(utterance: Utterance, seconds: float, longest: float) -> None:
    """Raises AudioError where `seconds` of audio are less than declared, or more and longer than `longest`."""
    if seconds < utterance.duration - DURATION_TOLERANCE:
        raise AudioError(
            f"{seconds:.2f} s of audio where {utterance.duration:.2f} s are declared: "
            "restore the file, which may be truncated, or correct the duration"
        )
    if seconds > utterance.duration + DURATION_TOLERANCE and seconds > longest:
        raise AudioError(
            f"{seconds:.2f} s of audio where {utterance.duration:.2f} s are declared do not fit among utterances of "
            f"up to {longest:.2f} s: correct the duration"
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan that says which utterances form the batch of a step; its size does not grow with their number.

    In an epoch every utterance occurs once, except those that fill up the last batch of a bucket. With
    `curriculum_steps` C > 0 and n buckets in use, the k-th (from 0, shortest first) joins at step ceil(C k / n), and
    new epochs start then: short utterances first (Amodei et al., 2016, "Deep Speech 2", section 3.2, SortaGrad).
    """

    seed: int
    batch_sizes: tuple[int, ...]  # by bucket
    members: tuple[Sequence[int], ...]  # by bucket; at least one has members
    curriculum_steps: int

    @functools.cached_property
    def _used(self) -> list[int]:
        return [bucket for bucket, members in enumerate(self.members) if members]

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first step of each stage of the curriculum."""
        if self.curriculum_steps <= 0:
            return [0]
        return [math.ceil(self.curriculum_steps * k / len(self._used)) for k in range(len(self._used))]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch over all buckets."""
        return sum(map(self._num_batches, self._used))

    def _num_batches(self, bucket: int) -> int:
        return -(-len(self.members[bucket]) // self.batch_sizes[bucket])

    def batch(self, step: int) -> tuple[int, list[int]]:
        """The bucket of a step, and the members that form its batch, as many as the bucket holds."""
        stage = bisect.bisect_right(self._starts, step) - 1
        buckets = self._used if stage == len(self._starts) - 1 else self._used[: stage + 1]
        ends = list(itertools.accumulate(map(self._num_batches, buckets)))
        epoch, position = divmod(step - self._starts[stage], ends[-1])
        number = _shuffled(epoch * ends[-1] + position, ends[-1], self.seed, stage)
        index = bisect.bisect_right(ends, number)
        bucket, number = buckets[index], number - (ends[index - 1] if index else 0)
        members, size = self.members[bucket], self.batch_sizes[bucket]
        order, first = (len(members), self.seed, stage, bucket), epoch * len(members)
        rows = range(number * size, (number + 1) * size)
        return bucket, [members[_shuffled(first + row % len(members), *order)] for row in rows]  # the last wraps round


def _shuffled(index: int, count: int, *key: int) -> int:
    """Returns element index % count of range(count) in the order of epoch index // count, without storing the order."""
    return cast(int, _order(count, key)[index])


@functools.lru_cache(maxsize=256)
def _order(count: int, key: tuple[int, ...]) -> grain.MapDataset:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return grain.MapDataset.range(count).shuffle(seed=seed)
