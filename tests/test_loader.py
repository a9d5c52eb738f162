"""Buckets, the plan of batches, and the loaders."""

import collections
import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
import soundfile
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.config import AugmentConfig, Config, DataConfig, FeatureConfig
from conformer.ctc import min_frames
from conformer.data import loader
from conformer.data.buckets import Plan, Reason, Rules, make_buckets, select, with_buckets
from conformer.data.loader import TrainLoader, eval_batches
from conformer.data.manifest import AudioFile, DataError, Pcm, Utterance, load_manifest
from conformer.tokenizer import CharTokenizer

RATE = 1000
TOKENIZER = CharTokenizer(["<blk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])


def frames(seconds):
    return round(25 * seconds)


def utterance(id, duration=1.0, text="go", audio=None):
    if audio is None:
        noise = np.random.default_rng(list(id.encode())).integers(-9000, 9000, round(duration * RATE))
        audio = Pcm(noise.astype(np.int16), RATE)
    return Utterance(id, text, "", "train", duration, audio)


def corpus(count=40):
    return [utterance(f"u{i}", 0.5 + 0.1 * (i % 25), "abcdefgh"[: 1 + i % 8]) for i in range(count)]


def config(seed=0, augment=None, **data):
    return Config(
        seed=seed,
        features=FeatureConfig(sample_rate=RATE),
        augment=augment or AugmentConfig(),
        data=DataConfig(**{"bucket_seconds": (1.0, 2.0, 3.0), "batch_seconds": 6.0, "max_dropped_share": 1.0} | data),
    )


def train_loader(utterances=None, **options):
    return TrainLoader(config(**options), utterances or corpus(), TOKENIZER, frames)


def assert_same(left, right):
    for (step, a), (other, b) in zip(left, right, strict=True):
        assert step == other
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert np.array_equal(x, y), (step, name)


NOISY = AugmentConfig(speed_factors=(0.9, 1.0, 1.1), noise_probability=0.5, gain_db=(-3.0, 3.0))


def test_buckets_follow_the_config():
    first, last = make_buckets(DataConfig(batch_seconds=64.0, bucket_seconds=(2.0, 4.5), max_label_rate=25.0), 16000)
    assert dataclasses.astuple(first) == (2.0, 32, 32000, 50)
    assert dataclasses.astuple(last) == (4.5, 14, 72000, 113)


@settings(max_examples=30)
@given(
    durations=st.lists(st.floats(0.05, 20.0), min_size=1, max_size=40),
    speeds=st.sampled_from([(1.0,), (0.9, 1.0, 1.1)]),
)
def test_derived_buckets_hold_what_a_batch_can_with_the_least_padding(durations, speeds):
    utterances = [
        utterance(f"u{i}", duration, "a", Pcm(np.zeros(1, np.int16), RATE)) for i, duration in enumerate(durations)
    ]
    augment = AugmentConfig(speed_factors=speeds)
    derived = with_buckets(config(augment=augment, bucket_seconds=(), batch_seconds=12.0), utterances * 30)
    limits = derived.data.bucket_seconds
    most = min(5, 1 + 30 * sum(duration / speeds[0] <= 12.0 for duration in durations) // 100)
    assert 1 <= len(limits) <= most and limits[-1] <= 12.0
    assert with_buckets(derived, []) == derived
    stretched = [duration / speeds[0] for duration in durations]
    assert all(any(length <= limit + 1e-6 for limit in limits) for length in stretched if length <= 11.9)

    def audio(limits):
        return sum(min((limit for limit in limits if length <= limit + 1e-6), default=0.0) for length in stretched)

    held = sorted({np.ceil(round(10 * length, 6)) / 10 for length in stretched if length <= 11.9})
    if len(held) <= 8 and max(stretched) <= 11.9:
        others = itertools.combinations(held[:-1], min(len(held), most) - 1)
        assert audio(limits) <= min(audio([*some, held[-1]]) for some in others) + 1e-6


def test_buckets_for_a_corpus_of_unknown_lengths():
    assert with_buckets(config(bucket_seconds=()), []).data.bucket_seconds == (6.0,)


def test_resuming_gives_the_batches_of_an_undisturbed_run():
    whole = list(train_loader(augment=NOISY).batches(0, 30))
    assert [step for step, _ in whole] == list(range(30))
    for start in (0, 1, 17, 29):
        assert_same(train_loader(augment=NOISY).batches(start, 30 - start), whole[start:])


def test_seed_decides_order_and_augmentation():
    def lengths(seed):
        return [batch.audio_lengths.tolist() for _, batch in train_loader(seed=seed).batches(0, 20)]

    assert lengths(1) == lengths(1) != lengths(2)
    (_, a), (_, b) = (next(train_loader([utterance("u")], seed=seed, augment=NOISY).batches(0, 1)) for seed in (1, 2))
    assert not np.array_equal(a.audio, b.audio)


@pytest.fixture
def parsed_flags():
    """Grain's worker processes take options from absl's flags, which `absl.app.run` parses."""
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


def test_workers_give_the_same_batches(parsed_flags):
    inline, workers = train_loader(augment=NOISY), train_loader(augment=NOISY, num_workers=1)
    assert_same(inline.batches(3, 4), workers.batches(3, 4))


def test_iterating_part_of_the_batches_is_fine():
    batches = train_loader().batches(0, 1000)
    assert len(list(itertools.islice(batches, 3))) == 3
    batches.close()


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(0, 17), min_size=1, max_size=4).filter(any),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 10**6),
)
def test_every_utterance_once_an_epoch(counts, batch_size, seed, epoch):
    ids = iter(range(100))
    members = tuple(tuple(itertools.islice(ids, count)) for count in counts)
    plan = Plan(seed, (batch_size,) * len(counts), members, 0)
    seen = collections.Counter()
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        bucket, chosen = plan.batch(step)
        assert len(chosen) == batch_size and set(chosen) <= set(members[bucket])
        seen.update(chosen)
    assert seen.keys() == set(range(sum(counts)))
    for of in members:  # the wrap adds less than a batch
        assert sum(seen[member] for member in of) - len(of) in range(batch_size)
        assert max((seen[m] for m in of), default=0) - min((seen[m] for m in of), default=0) <= 1


def test_epochs_differ_in_order():
    plan = Plan(0, (2,), (tuple(range(20)),), 0)
    first, second = ([plan.batch(step) for step in range(at, at + 10)] for at in (0, 10))
    assert first != second and first == [plan.batch(step) for step in range(10)]


def test_curriculum_lets_longer_buckets_in():
    # The first bucket has no members, hence no stage.
    plan = Plan(0, (1, 1, 1, 1), ((), (0, 1), (2, 3), (4, 5)), 60)
    assert {plan.batch(step)[0] for step in range(20)} == {1}
    assert {plan.batch(step)[0] for step in range(20, 40)} == {1, 2}
    assert {plan.batch(step)[0] for step in range(40, 60)} == {1, 2, 3}
    assert sorted(plan.batch(step)[1][0] for step in range(46, 52)) == list(range(6))


def test_shapes_are_static_and_rows_hold_their_utterance():
    utterances = corpus()
    by_audio = {(u.samples(RATE) * 32768).astype(np.int16).tobytes(): u for u in utterances}
    built = train_loader(utterances)
    allowed = {(b.batch_size, b.num_samples, b.max_labels) for b in built.buckets}
    for _, batch in built.batches(0, built.steps_per_epoch):
        assert (*batch.audio.shape, batch.labels.shape[1]) in allowed
        assert batch.audio.dtype == batch.weights.dtype == np.float32
        assert batch.audio_lengths.dtype == batch.labels.dtype == batch.label_lengths.dtype == np.int32
        assert np.all(batch.weights == 1)
        for audio, length, labels, label_length in zip(*batch[:4], strict=True):
            source = by_audio[(audio[:length] * 32768).astype(np.int16).tobytes()]
            assert TOKENIZER.decode(labels[:label_length].tolist()) == source.text
            assert not audio[length:].any() and not labels[label_length:].any()


def test_drops_are_listed_by_reason():
    utterances = [
        utterance("fits"),
        utterance("tight", 0.4, "abcdefgh"),
        utterance("gone", audio=AudioFile(pathlib.Path("gone.wav"))),
        utterance("unknown", float("nan"), audio=AudioFile(pathlib.Path(__file__))),
        utterance("empty", text=""),
        utterance("accent", text="café"),
        utterance("long", 3.1),
        utterance("dense", 1.0, "ab" * 13),
        utterance("fast", 0.4, "abcdefghijkl"),
        utterance("repeats", 0.4, "aabbccdd"),
    ]
    built = train_loader(utterances)
    assert {reason: [utterances[i].id for i in dropped] for reason, dropped in built.dropped.items()} == {
        Reason.MISSING: ["gone"],
        Reason.UNREADABLE: ["unknown"],
        Reason.EMPTY: ["empty"],
        Reason.ALPHABET: ["accent"],
        Reason.TOO_LONG: ["long"],
        Reason.TOO_MANY_LABELS: ["dense"],
        Reason.INFEASIBLE: ["fast", "repeats"],
    }
    assert (built.num_utterances, built.seconds, built.broken) == (2, 1.4, {})


def test_nothing_left_to_train_on():
    with pytest.raises(DataError, match=r"1 of 1 utterances of .*\n  1 empty transcript: add the transcripts"):
        train_loader([utterance("empty", text="")])
    with pytest.raises(DataError, match=r"no utterance in data\.train_splits"):
        TrainLoader(config(), [], TOKENIZER, frames)


def test_losing_too_many_stops_the_run_and_names_the_keys():
    utterances = [*corpus(18), utterance("long", 3.5)]
    assert train_loader(utterances, max_dropped_share=0.06).num_utterances == 18
    with pytest.raises(DataError, match=r"1 of 19 .* data\.max_dropped_share=0\.05 allows:\n  1 longer") as error:
        train_loader(utterances, max_dropped_share=0.05)
    assert "raise the last of data.bucket_seconds" in str(error.value)


@settings(max_examples=50)
@given(
    duration=st.floats(0.05, 4.0),
    num_labels=st.integers(1, 60),
    speeds=st.lists(st.sampled_from([0.8, 0.9, 1.0, 1.1, 1.3]), min_size=1, unique=True),
)
def test_what_is_kept_fits_and_is_feasible_at_every_speed(duration, num_labels, speeds):
    shapes = make_buckets(config().data, RATE)
    kept = utterance("u", duration, "ab" * (num_labels // 2) + "b" * (num_labels % 2))
    rules = Rules(TOKENIZER, shapes, speeds, frames)
    selection = select([kept], rules)
    assert sum(map(len, selection.members)) + sum(map(len, selection.dropped.values())) == 1
    for shape, members in zip(shapes, selection.members, strict=True):
        for _ in members:
            labels = rules.labels(kept, shape)
            assert len(labels) <= shape.max_labels
            for speed in speeds:
                assert duration / speed <= shape.seconds + 1e-6
                assert min_frames(labels) <= frames(duration / speed)


def write(path, samples):
    soundfile.write(path, samples, RATE)
    return AudioFile(path)


def tone(seconds):
    return 0.3 * np.sin(np.arange(round(seconds * RATE)) / 3)


def test_broken_files_are_skipped_and_listed(tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"no audio")
    bad = {
        "noise": AudioFile(tmp_path / "noise.wav"),
        "short": write(tmp_path / "short.wav", tone(0.6)),
        "longer": write(tmp_path / "longer.wav", tone(1.4)),
    }
    good = [utterance(f"g{i}", audio=write(tmp_path / f"{i}.wav", tone(1.0))) for i in range(9)]
    built = train_loader(good + [utterance(id, audio=audio) for id, audio in bad.items()], max_broken_share=0.5)
    batches = [batch for _, batch in built.batches(0, 2 * built.steps_per_epoch)]
    weights = np.concatenate([batch.weights for batch in batches])
    assert weights.sum() == 18 and weights.size == 24  # two epochs of two batches of six
    for batch in batches:
        filler = batch.weights == 0
        assert not batch.audio[filler].any() and not batch.labels[filler].any()
        assert np.all(batch.label_lengths[filler] == 0) and np.all(batch.audio_lengths[filler] == RATE)
    assert built.broken.keys() == bad.keys()
    assert "noise.wav" in built.broken["noise"]
    assert "0.60 s of audio where 1.00 s are declared: restore the file" in built.broken["short"]
    assert "correct the duration" in built.broken["longer"]


def test_too_many_broken_files_stop(tmp_path):
    noise = [tmp_path / f"noise{i}.wav" for i in range(2)]
    for path in noise:
        path.write_bytes(b"no audio")
    utterances = corpus(18) + [utterance(path.stem, audio=AudioFile(path)) for path in noise]
    with pytest.raises(DataError, match=r"of 20 utterances .* data\.max_broken_share=0\.05") as error:
        list(train_loader(utterances, max_broken_share=0.05).batches(0, 100))
    assert "noise0.wav" in str(error.value) and "noise1.wav" in str(error.value)
    assert len(list(train_loader(utterances, max_broken_share=0.1).batches(0, 100))) == 100


def test_rounded_durations_are_accepted(tmp_path):
    rounded = utterance("u", 1.0, audio=write(tmp_path / "u.wav", tone(1.01)))
    built = train_loader([rounded])
    ((_, batch),) = built.batches(0, 1)
    assert not built.broken and batch.audio.shape[1] == RATE and np.all(batch.audio_lengths == RATE)


@pytest.mark.parametrize("cache_bytes", [loader.CACHE_BYTES, 2500, 0])
def test_cache_changes_nothing(tmp_path, monkeypatch, cache_bytes):
    utterances = [utterance(f"u{i}", audio=write(tmp_path / f"{i}.wav", tone(1.0) / (i + 1))) for i in range(4)]
    expected = list(train_loader(utterances).batches(0, 6))
    reads = collections.Counter()
    load_audio = AudioFile.samples

    def counted(self, sample_rate):
        reads[self.path.name] += 1
        return load_audio(self, sample_rate)

    monkeypatch.setattr(loader, "CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(AudioFile, "samples", counted)
    assert_same(train_loader(utterances).batches(0, 6), expected)
    cached = [name for name, count in reads.items() if count == 1]
    assert len(cached) == min(4, cache_bytes // 2000)  # int16: 2000 bytes a file


def test_evaluation_loses_nothing(tmp_path):
    utterances = [*corpus(30), utterance("huge", 7.5), utterance("huge2", 8.0), utterance("mute", text="")]
    gone = utterance("gone", float("nan"), audio=AudioFile(tmp_path / "gone.wav"))
    understated = utterance("understated", 1.0, audio=write(tmp_path / "u.wav", tone(2.5)))
    broken, seen, shapes = {}, [], set()
    for rows, batch in eval_batches(config(), [*utterances, gone, understated], broken):
        shapes.add(batch.audio.shape)
        assert batch.weights.tolist() == [1.0] * len(rows) + [0.0] * (len(batch.weights) - len(rows))
        for row, audio, length in zip(rows, batch.audio, batch.audio_lengths, strict=False):
            assert np.allclose(audio[:length], row.samples(RATE)) and not audio[length:].any()
        seen += [row.id for row in rows]
    assert sorted(seen) == sorted(u.id for u in [*utterances, understated])
    assert broken.keys() == {"gone"} and "gone.wav" in broken["gone"]
    assert shapes == {(6, 1000), (3, 2000), (2, 3000), (1, 9000)}


def test_real_packs_load(speech_data):
    utterances = [u for u in load_manifest(speech_data / "connected_digits_8k") if u.split == "train"][::40]
    data = DataConfig(bucket_seconds=(2.0, 6.0), batch_seconds=12.0, max_dropped_share=1.0)
    built = TrainLoader(Config(data=data), utterances, TOKENIZER, frames)
    assert len(list(built.batches(0, 5))) == 5 and not built.broken
    assert built.num_utterances + sum(map(len, built.dropped.values())) == len(utterances)
    assert Reason.TOO_LONG in built.dropped
