"""Length buckets, which utterances fit them, and the plan: which utterances form the batch of a step.

A bucket has one static shape, so that a training step compiles once for each bucket. The plan is a pure function of
(seed, step): a run resumes at any step, and there is no order to save.
"""

import bisect
import collections
import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from conformer.config import DataConfig
from conformer.ctc import min_frames
from conformer.data.manifest import Utterance
from conformer.tokenizer import Tokenizer, TokenizerError

# Seconds by which a declared duration may be off: manifests round. What is beyond the bucket is cut, no more than this.
DURATION_TOLERANCE = 0.02


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


class Reason(enum.StrEnum):
    """Why an utterance is not trained on."""

    UNREADABLE = "duration unknown: the audio cannot be read"
    EMPTY = "empty transcript"
    ALPHABET = "characters outside the alphabet"
    TOO_LONG = "longer than the last of data.bucket_seconds"
    TOO_MANY_LABELS = "more labels a second than data.max_label_rate"
    INFEASIBLE = "too short for its transcript under CTC"


@dataclasses.dataclass(frozen=True)
class Selection:
    """The utterances that fit. `members[k]` are those of bucket k, as indices into `utterances` and `labels`."""

    utterances: tuple[Utterance, ...]
    labels: tuple[tuple[int, ...], ...]
    members: tuple[tuple[int, ...], ...]
    dropped: dict[str, list[str]]  # ids by Reason


def select(
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    buckets: Sequence[Bucket],
    speed_factors: Sequence[float],
    output_frames: Callable[[float], int],
) -> Selection:
    """Assigns each utterance to the shortest bucket that it fits at every speed, and lists those that fit none.

    `output_frames(seconds)` is the number of frames that CTC gets. Every transcript kept has an alignment: at the
    highest speed it needs no more frames than there are (its labels, and a blank between equal neighbours).
    """
    kept, labels = [], []
    members: list[list[int]] = [[] for _ in buckets]
    dropped: dict[str, list[str]] = collections.defaultdict(list)
    limits = [bucket.seconds for bucket in buckets]

    for utterance in utterances:
        if not utterance.duration > 0:
            dropped[Reason.UNREADABLE].append(utterance.id)
            continue
        try:
            units = tokenizer.encode(utterance.text)
        except TokenizerError:
            dropped[Reason.ALPHABET].append(utterance.id)
            continue
        index = bisect.bisect_left(limits, utterance.duration / min(speed_factors))
        shortest = max(0.0, (utterance.duration - DURATION_TOLERANCE) / max(speed_factors))
        if not units:
            dropped[Reason.EMPTY].append(utterance.id)
        elif index == len(buckets):
            dropped[Reason.TOO_LONG].append(utterance.id)
        elif len(units) > buckets[index].max_labels:
            dropped[Reason.TOO_MANY_LABELS].append(utterance.id)
        elif min_frames(units) > output_frames(shortest):
            dropped[Reason.INFEASIBLE].append(utterance.id)
        else:
            members[index].append(len(kept))
            kept.append(utterance)
            labels.append(tuple(units))
    return Selection(tuple(kept), tuple(labels), tuple(map(tuple, members)), dict(dropped))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which utterances form the batch of a step.

    In an epoch every utterance occurs once, except those that fill up the last batch of a bucket. With
    `curriculum_steps` C > 0 and n buckets in use, the k-th (from 0, shortest first) joins at step ceil(C k / n), and
    new epochs start then: short utterances first (Amodei et al., 2016, "Deep Speech 2", section 3.2, SortaGrad).
    """

    seed: int
    batch_sizes: tuple[int, ...]  # by bucket
    members: tuple[tuple[int, ...], ...]  # by bucket; at least one has members
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
        return self._steps(self._used)

    def _steps(self, buckets: list[int]) -> int:
        return sum(-(-len(self.members[bucket]) // self.batch_sizes[bucket]) for bucket in buckets)

    def batch(self, step: int) -> tuple[int, list[int]]:
        """The bucket of a step, and the members that form its batch, as many as the bucket holds."""
        stage = bisect.bisect_right(self._starts, step) - 1
        buckets = self._used if stage == len(self._starts) - 1 else self._used[: stage + 1]
        epoch, position = divmod(step - self._starts[stage], self._steps(buckets))
        shapes = tuple((bucket, len(self.members[bucket]), self.batch_sizes[bucket]) for bucket in buckets)
        bucket, chosen = _epoch(self.seed, stage, epoch, shapes)[position]
        return bucket, [self.members[bucket][i] for i in chosen]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, stage: int, epoch: int, shapes: tuple[tuple[int, int, int], ...]) -> list[tuple[int, np.ndarray]]:
    """The batches of an epoch, shuffled, from (bucket, number of members, batch size)."""
    rng = np.random.default_rng((seed, stage, epoch))
    batches = []
    for bucket, count, batch_size in shapes:
        order = np.resize(rng.permutation(count), -(-count // batch_size) * batch_size)  # wraps round
        batches += [(bucket, chosen) for chosen in order.reshape(-1, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
