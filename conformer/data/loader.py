"""Batches of static shape, for training (Grain, resumable at any step) and for evaluation."""

import collections
import functools
import pathlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from conformer.audio import INT16_SCALE, AudioError, float_to_pcm16
from conformer.augment import augment_audio
from conformer.background import draw_background
from conformer.config import Config, DataConfig
from conformer.data.buckets import (
    REMEDIES,
    Bucket,
    Plan,
    Reason,
    Rules,
    Selection,
    UnfitError,
    check_length,
    make_bucket,
    make_buckets,
    select,
    with_buckets,
)
from conformer.data.manifest import AudioFile, DataError, Recipe, Utterance, load_manifest
from conformer.data.records import SUMMARY, UNFINISHED, Corpus, Utterances
from conformer.data.subset import subset
from conformer.data.synthetic import synthesise
from conformer.tokenizer import Tokenizer
from kernels.typing import Float, Int

CACHE_BYTES = 2 << 30  # decoded audio kept in memory, over all workers
_PREFETCH = 4  # batches ready ahead of the step that uses them
_SHOWN = 3  # utterances that an error lists
_FEW_ROWS = 500  # so many may be empty without a share that means anything


class Batch(NamedTuple):
    """Utterances of one bucket, as NumPy arrays.

    A row that holds no utterance has weight 0, silence of full length (so that nothing in it is ill-defined) and no
    labels.
    """

    audio: Float[np.ndarray, "batch samples"]  # float32, zero padded
    audio_lengths: Int[np.ndarray, "batch"]  # int32, in samples
    labels: Int[np.ndarray, "batch labels"]  # int32, zero padded
    label_lengths: Int[np.ndarray, "batch"]  # int32
    weights: Float[np.ndarray, "batch"]  # float32: 1, or 0 for a row without an utterance


class Share(NamedTuple):
    """The rows of a batch that one process reads, of `count` that train together on `devices` devices in all."""

    index: int = 0
    count: int = 1
    devices: int = 1
    accumulate: int = 1  # parts that a device computes one after another

    def rows(self, batch_size: int) -> range:
        """Returns this process's rows of a batch, which is filled up to as many for each part on each device."""
        parts = self.devices * self.accumulate
        each = -(-batch_size // parts) * parts // self.count
        return range(self.index * each, (self.index + 1) * each)


ALL_ROWS = Share()


def load_utterances(config: Config, say: Callable[[str], object] = lambda line: None) -> Utterances:
    """All splits of `config.data.source` and the train splits of `data.also_train`, or their `subset`.

    Those of a prepared corpus are read one by one. `say` is given a line about splits that were drawn. Raises
    DataError.
    """
    data = config.data
    if data.source == "synthetic":
        utterances = synthesise(data.synthetic, config.features.sample_rate)
    else:
        utterances = _load(pathlib.Path(data.source), config.text.normalise, say)
    if data.also_train:
        utterances = _joined(config, utterances, say)
    if not (data.words or data.train_minutes):
        return utterances
    if isinstance(utterances, Corpus):
        raise DataError(
            f"{data.source} is prepared, and data.words and data.train_minutes choose from a manifest: leave them out, "
            "or point data.source at the manifest"
        )
    return subset(data, utterances)


def _joined(config: Config, utterances: Utterances, say: Callable[[str], object]) -> list[Utterance]:
    """Utterances, and those of the train splits of `data.also_train`."""
    data = config.data
    if isinstance(utterances, Corpus):
        raise DataError(
            f"{data.source} is prepared, and data.also_train joins manifests: leave it out, or use the manifest"
        )
    joined = list(utterances)
    ids = {utterance.id for utterance in joined}
    for source in data.also_train:
        more = in_splits(load_manifest(source, config.text.normalise, say), data.train_splits)
        if not more:
            raise DataError(f"data.also_train: {source} has no utterance in data.train_splits={data.train_splits}")
        if twice := next((utterance.id for utterance in more if utterance.id in ids), None):
            raise DataError(f"data.also_train: {source} has an utterance {twice!r}, as another source has: rename one")
        ids.update(utterance.id for utterance in more)
        joined += more
    return joined


def _load(path: pathlib.Path, level: str, say: Callable[[str], object]) -> Utterances:
    if (path / SUMMARY).is_file():
        return Corpus(path, level=level)
    if (path / UNFINISHED).is_dir():
        raise DataError(f"{path} is not prepared to its end: run the command that began it again")
    return load_manifest(path, level, say)


def in_splits(utterances: Utterances, splits: Collection[str]) -> Utterances:
    """Returns the utterances of some splits."""
    if isinstance(utterances, Corpus):
        return utterances.of_splits(splits)
    return [utterance for utterance in utterances if utterance.split in splits]


def texts_of(utterances: Utterances) -> list[str]:
    """Transcripts to derive units from: all, or the bounded sample of a prepared corpus."""
    return utterances.texts() if isinstance(utterances, Corpus) else [utterance.text for utterance in utterances]


def load_split(
    config: Config, manifest: str | None, split: str, say: Callable[[str], object] = print
) -> list[Utterance]:
    """The utterances of a split, of several ("dev,test") or of "all", of a manifest or folder, or of `data.source`.

    `say` is given a line about splits that were drawn. Raises DataError, which names the splits there are, where there
    is none of one.
    """
    config = config.replace({"data.also_train": ()})
    if manifest is not None:
        config = config.replace({"data.source": manifest, "data.words": (), "data.train_minutes": 0.0})
    utterances = load_utterances(config, say if split != "all" else lambda line: None)
    chosen = list(utterances if split == "all" else in_splits(utterances, split.split(",")))
    there = {utterance.split for utterance in chosen}
    absent = [name for name in split.split(",") if name not in there and split != "all"]
    if absent or not chosen:
        splits = utterances.splits if isinstance(utterances, Corpus) else {u.split for u in utterances}
        name = absent[0] if absent else split
        raise DataError(f"no utterance in split {name!r}: --split may be all, {', '.join(sorted(splits))}")
    return chosen


class TrainLoader:
    """Training batches of `utterances`, which are those of the train split.

    Attributes:
        dropped: those that cannot be trained on, as indices into `utterances`, by Reason; known from the start.
        broken: message by id of utterances that turned out unreadable; grows while batches are read.
        left_empty: rows of batches without an utterance, by Reason. A prepared corpus has them, since its transcripts
            are looked at when they are read.
        num_rows: rows of the batches so far.
        num_utterances: how many are trained on.
        seconds: their audio, in seconds.
        steps_per_epoch: updates in which each occurs once.
        buckets: the batch shapes there can be.
    """

    def __init__(
        self,
        config: Config,
        utterances: Utterances,
        tokenizer: Tokenizer,
        output_frames: Callable[[float], int],
    ):
        """`output_frames(seconds)` is the number of frames that CTC gets.

        Raises DataError if more than `data.max_dropped_share` of the utterances cannot be trained on.
        """
        self._data = config.data
        self.buckets = make_buckets(config.data, config.features.sample_rate)
        rules = Rules(tokenizer, self.buckets, config.augment.speed_factors, output_frames)
        selection = select(utterances, rules)
        self.dropped = selection.dropped
        self.broken: dict[str, str] = {}
        self.left_empty: collections.Counter[str] = collections.Counter()
        self.num_rows = 0
        self.num_utterances = sum(map(len, selection.members))
        self.seconds = selection.seconds
        _check_share(config.data, selection, self.num_utterances)
        plan = Plan(
            seed=config.seed,
            batch_sizes=tuple(bucket.batch_size for bucket in self.buckets),
            members=selection.members,
            curriculum_steps=config.data.curriculum_steps,
        )
        self.steps_per_epoch = plan.steps_per_epoch
        self._reader = _Reader(config, utterances, rules, plan)

    def batches(
        self, start_step: int, num_steps: int, share: Share = ALL_ROWS
    ) -> Generator[tuple[int, Batch], None, None]:
        """(step, batch) of `num_steps` steps from `start_step` on, the same whatever came before.

        Of each batch, the rows of `share`: all by default. A row is the same whichever process reads it.

        Raises DataError once more than `data.max_broken_share` of the utterances have turned out unreadable, or most
        rows are left empty.
        """
        steps = grain.MapDataset.range(start_step, start_step + num_steps)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
        reader = functools.partial(self._reader, share=share)
        dataset = steps.map(reader).to_iter_dataset(options)
        if self._data.num_workers > 0:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self._data.num_workers, _PREFETCH))
        iterator = iter(dataset)
        try:
            for step, batch, broken, unfit in iterator:
                self.num_rows += len(batch.weights)
                self._report(broken, unfit)
                yield step, batch
        finally:
            iterator.close()

    def utterance_ids(self, step: int) -> list[str]:
        """The utterances of a step's batch."""
        return self._reader.utterance_ids(step)

    def left_out(self) -> list[str]:
        """A line a reason for which rows were left empty."""
        return [f"{count} of {self.num_rows} rows left empty: {reason}" for reason, count in self.left_empty.items()]

    def _report(self, broken: dict[str, str], unfit: list[str]) -> None:
        self.left_empty.update(unfit)
        if self.left_empty.total() > max(_FEW_ROWS, self.num_rows / 2):
            raise DataError(
                f"most of what is read cannot be trained on ({'; '.join(self.left_out())}): check the tokenizer, "
                "data.max_label_rate and model.subsampling_factor"
            )
        if not broken.keys() - self.broken.keys():
            return
        self.broken |= broken
        if len(self.broken) > self._data.max_broken_share * self.num_utterances:
            shown = "\n  ".join(list(self.broken.values())[:_SHOWN])
            raise DataError(
                f"{len(self.broken)} of {self.num_utterances} utterances cannot be used, more than "
                f"data.max_broken_share={self._data.max_broken_share} allows: repair them or raise it; first ones:\n"
                f"  {shown}"
            )


def _check_share(config: DataConfig, selection: Selection, kept: int) -> None:
    """Raises DataError where none, or too few, of the utterances of the train splits can be trained on."""
    lost = sum(map(len, selection.dropped.values()))
    if not kept + lost:
        raise DataError(f"{config.source!r} has no utterance in data.train_splits={config.train_splits}: correct one")
    if kept and lost <= config.max_dropped_share * (kept + lost):
        return
    reasons = sorted(selection.dropped, key=lambda reason: -len(selection.dropped[reason]))
    shown = "".join(f"\n  {len(selection.dropped[reason])} {reason}: {REMEDIES[Reason(reason)]}" for reason in reasons)
    raise DataError(
        f"{lost} of {kept + lost} utterances of {config.source!r} cannot be trained on, more than "
        f"data.max_dropped_share={config.max_dropped_share} allows:{shown}"
    )


class _Reader:
    """step -> (step, batch, message by id of what could not be read, Reason of each row that did not fit).

    Pickled to each worker.
    """

    def __init__(self, config: Config, utterances: Utterances, rules: Rules, plan: Plan):
        self._seed = config.seed
        self._augment = config.augment
        self._sample_rate = config.features.sample_rate
        self._cache_bytes = CACHE_BYTES // max(1, config.data.num_workers)
        self._utterances = utterances
        self._rules = rules
        self._plan = plan
        self._cache: dict[int, np.ndarray] = {}
        self._cached = 0  # bytes

    def __getstate__(self):
        return self.__dict__ | {"_cache": {}, "_cached": 0}

    def __call__(self, step: int, share: Share) -> tuple[int, Batch, dict[str, str], list[str]]:
        index, members = self._plan.batch(step)
        bucket = self._rules.buckets[index]
        rows = share.rows(bucket.batch_size)
        batch, broken, unfit = _empty_batch(bucket, len(rows)), {}, []
        for row in range(rows.start, min(rows.stop, len(members))):
            utterance = self._utterances[members[row]]
            try:
                labels = self._rules.labels(utterance, bucket)
                audio = self._read(members[row], utterance)
                check_length(utterance, len(audio) / self._sample_rate, bucket.seconds * self._rules.slowest)
            except UnfitError as error:
                unfit.append(error.args[0])
                continue
            except (AudioError, OSError) as error:
                broken[utterance.id] = f"{utterance.id}: {error}"
                continue
            rng = np.random.default_rng((self._seed, step, row))
            audio = augment_audio(self._augment, audio, self._sample_rate, rng, bucket.num_samples)
            if rng.random() < self._augment.background_probability:
                labels, audio = [], draw_background(len(audio), self._sample_rate, rng)
            own = row - rows.start
            _fill(batch, own, audio[: bucket.num_samples])  # cuts no more than DURATION_TOLERANCE
            batch.labels[own, : len(labels)] = labels
            batch.label_lengths[own] = len(labels)
        return step, batch, broken, unfit

    def utterance_ids(self, step: int) -> list[str]:
        return [self._utterances[member].id for member in self._plan.batch(step)[1]]

    def _read(self, member: int, utterance: Utterance) -> np.ndarray:
        """Samples with the precision of int16, whether they come from the cache or not."""
        if not isinstance(utterance.audio, AudioFile | Recipe):
            return utterance.samples(self._sample_rate)  # in memory already, or as good as
        pcm = self._cache.get(member)
        if pcm is None:
            pcm = float_to_pcm16(utterance.samples(self._sample_rate))
            # A full cache stays as it is: an epoch reads everything, so replacing entries would not make more hits.
            if self._cached + pcm.nbytes <= self._cache_bytes:
                self._cache[member] = pcm
                self._cached += pcm.nbytes
        return pcm.astype(np.float32) / INT16_SCALE


def eval_batches(
    config: Config, utterances: Sequence[Utterance], broken: dict[str, str]
) -> Iterator[tuple[list[Utterance], Batch]]:
    """All utterances in batches of a few static shapes, about ascending in length; none is dropped.

    Yields the utterances of the first rows, and a batch without labels; further rows have weight 0. The shapes are the
    training buckets and, for longer utterances, multiples of the last one. An utterance that cannot be read is in no
    batch: its message is put into `broken`, by id.
    """
    config = with_buckets(config, utterances)
    sample_rate = config.features.sample_rate
    buckets = list(make_buckets(config.data, sample_rate))
    last = buckets[-1].seconds
    pending: dict[Bucket, list[tuple[Utterance, np.ndarray]]] = {}
    for utterance in sorted(utterances, key=lambda utterance: (utterance.duration > 0, utterance.duration)):
        try:
            audio = utterance.samples(sample_rate)
        except (AudioError, OSError) as error:
            broken[utterance.id] = f"{utterance.id}: {error}"
            continue
        # By the length it has, which need not be the declared one.
        while len(audio) > buckets[-1].num_samples:
            buckets.append(make_bucket(config.data, sample_rate, buckets[-1].seconds + last))
        bucket = next(bucket for bucket in buckets if len(audio) <= bucket.num_samples)
        rows = pending.setdefault(bucket, [])
        rows.append((utterance, audio))
        if len(rows) == bucket.batch_size:
            yield _eval_batch(bucket, pending.pop(bucket))
    for bucket, rows in pending.items():
        yield _eval_batch(bucket, rows)


def _eval_batch(bucket: Bucket, rows: list[tuple[Utterance, np.ndarray]]) -> tuple[list[Utterance], Batch]:
    batch = _empty_batch(bucket, bucket.batch_size)
    for row, (_, audio) in enumerate(rows):
        _fill(batch, row, audio)
    return [utterance for utterance, _ in rows], batch


def _empty_batch(bucket: Bucket, size: int) -> Batch:
    return Batch(
        audio=np.zeros((size, bucket.num_samples), np.float32),
        audio_lengths=np.full(size, bucket.num_samples, np.int32),
        labels=np.zeros((size, bucket.max_labels), np.int32),
        label_lengths=np.zeros(size, np.int32),
        weights=np.zeros(size, np.float32),
    )


def _fill(batch: Batch, row: int, audio: np.ndarray) -> None:
    batch.audio[row, : len(audio)] = audio
    batch.audio_lengths[row] = len(audio)
    batch.weights[row] = 1
