"""Prepared corpora: what is written, what a kill or damage does to it, and training from it."""

import collections
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

import prepare as command
import train
from conformer.config import AugmentConfig, Config, ConfigError, DataConfig, FeatureConfig
from conformer.data import loader as loader_module
from conformer.data import prepare as prepare_module
from conformer.data import worklists
from conformer.data.buckets import Reason, Rules, make_buckets, select
from conformer.data.loader import TrainLoader, eval_batches, in_splits, load_split, load_utterances
from conformer.data.manifest import DataError, load_manifest, read_utterances, to_row
from conformer.data.prepare import fill, finish, is_finished, verify
from conformer.data.records import FORMAT, STEP, SUMMARY, Corpus, length_step
from conformer.data.worklists import Settings, make_work_lists
from conformer.tokenizer import CharTokenizer

ROOT = pathlib.Path(__file__).parents[1]
RATE = 4_000
TOKENIZER = CharTokenizer(["<blk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])
SHARD_HOURS = 8 / 3600


def sound(name: str, seconds: float) -> np.ndarray:
    return 0.3 * np.random.default_rng(list(name.encode())).uniform(-1, 1, round(seconds * RATE))


def write_manifest(folder: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    """A manifest beside its audio; a row without `text` gets one, and audio unless it names a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.jsonl"
    with path.open("w") as file:
        for row in rows:
            if "audio" not in row:
                name = f"{row['id']}.wav"
                soundfile.write(folder / name, sound(row["id"], row["duration"]), RATE, subtype="PCM_16")
                row = row | {"audio": name}
            row = {"text": "go on", "speaker": f"s{len(row['id'])}", "split": "train"} | row
            file.write(json.dumps(row) + "\n")
    return path


def rows(count: int = 40) -> list[dict]:
    splits = ("train", "train", "other", "dev")
    texts = ("abc", "d e", "fghi", "k")
    return [
        {"id": f"u{i}", "duration": 0.3 + 0.07 * (7 * i % 25), "text": texts[i // 4 % 4], "split": splits[i % 4]}
        for i in range(count)
    ]


def prepare(source: pathlib.Path, folder: pathlib.Path, shard_hours=SHARD_HOURS, num_workers=1) -> dict:
    lists = make_work_lists(Settings(str(source), RATE, shard_hours), folder)
    for _ in fill(lists, num_workers):
        pass
    return finish(lists)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> pathlib.Path:
    return write_manifest(tmp_path_factory.mktemp("source"), rows())


@pytest.fixture(scope="module")
def prepared(manifest, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    prepare(manifest, folder)
    return folder


def config(source: pathlib.Path, augment: AugmentConfig | None = None, **data) -> Config:
    values = {"bucket_seconds": (0.9, 1.6, 2.1), "batch_seconds": 4.2, "max_dropped_share": 1.0}
    values |= {"train_splits": ("train", "other")} | data
    return Config(
        features=FeatureConfig(sample_rate=RATE, high_freq=1_900.0),
        augment=augment or AugmentConfig(),
        data=DataConfig(source=str(source), **values),
    )


def frames(seconds: float) -> int:
    return round(25 * seconds)


def train_loader(settings: Config) -> TrainLoader:
    utterances = in_splits(load_utterances(settings), settings.data.train_splits)
    return TrainLoader(settings, utterances, TOKENIZER, frames)


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same_batches(left, right):
    for (step, a), (other, b) in zip(left, right, strict=True):
        assert step == other
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert np.array_equal(x, y), (step, name)


# ------------------------------------------------------------- what is written


def test_records_hold_what_the_manifest_names(manifest, prepared):
    expected, corpus = {u.id: u for u in load_manifest(manifest)}, Corpus(prepared)
    assert len(corpus) == len(expected) == 40 and corpus.splits == ("dev", "other", "train")
    for utterance in corpus:
        source = expected.pop(utterance.id)
        assert dataclasses.replace(utterance, audio=source.audio) == source
        for rate in (RATE, 5_000):
            assert np.array_equal(utterance.samples(rate), source.samples(rate))
    assert not expected


def test_a_corpus_ascends_in_length_over_shards_and_splits(prepared):
    corpus = Corpus(prepared, ("train", "other"))
    steps = [length_step(utterance.duration) for utterance in corpus]
    assert steps == sorted(steps) and {u.split for u in corpus} == {"train", "other"} and len(steps) == 30
    assert corpus[-1].id == corpus[29].id != corpus[0].id
    for seconds in (0.0, 0.3, 0.95, 1.0, 2.0, 9.9):
        stop = corpus.num_within(seconds)
        assert stop == sum(step * STEP <= seconds + 1e-9 for step in steps)
        assert corpus.seconds(stop) == pytest.approx(sum(corpus[i].duration for i in range(stop)))
    with pytest.raises(IndexError):
        corpus[30]


def test_the_summary_adds_up(prepared):
    summary = json.loads((prepared / SUMMARY).read_text())
    hours = sum(row["duration"] for row in rows() if row["split"] == "train") / 3600
    assert (summary["utterances"], summary["speakers"], summary["dropped"]) == (40, 2, {})
    assert summary["splits"]["train"] == {"utterances": 20, "hours": pytest.approx(hours), "speakers": 2}
    assert sum(summary["utterances_up_to_seconds"].values()) == 40
    assert summary["bytes"] == sum(file.stat().st_size for file in prepared.glob("*.arrayrecord"))
    assert [shard["name"] for shard in summary["shards"]] == ["dev-00000", "dev-00001"] + [
        f"{split}-{number:05}" for split in ("other", "train") for number in range(2 if split == "other" else 3)
    ]
    assert sorted(Corpus(prepared, ("dev",)).texts()) == sorted(u.text for u in Corpus(prepared, ("dev",)))
    assert sorted((prepared / "dev.txt").read_text().split("\n")) == sorted(
        ["", *(row["text"] for row in rows() if row["split"] == "dev")]
    )


def test_a_recipe_survives_the_way_through_a_work_list(speech_data, tmp_path):
    utterances = [u for u in load_manifest(speech_data / "connected_digits_8k")]
    chosen = [next(u for u in utterances if u.split == split) for split in ("train", "test")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(to_row(u)) + "\n" for u in chosen))
    copies = list(read_utterances(tmp_path / "rows.jsonl"))
    assert copies == chosen
    assert np.array_equal(copies[0].samples(8_000), chosen[0].samples(8_000))


def test_a_librispeech_folder_is_prepared(tmp_path):
    for chapter in ("dev-clean/7/12", "train-clean/19/3", "train-clean/2/44"):
        folder = tmp_path / "source" / chapter
        folder.mkdir(parents=True)
        name = "-".join(chapter.split("/")[1:])
        for number in range(2):
            soundfile.write(folder / f"{name}-{number}.flac", sound(name, 0.5), RATE)
        (folder / f"{name}.trans.txt").write_text(f"{name}-0 GO  ON\n{name}-1 STOP\n")
    summary = prepare(tmp_path / "source", tmp_path / "out")
    assert {split: total["utterances"] for split, total in summary["splits"].items()} == {
        "dev-clean": 2,
        "train-clean": 4,
    }
    assert [(u.id, u.text, u.speaker) for u in Corpus(tmp_path / "out", ("dev-clean",))] == [
        ("7-12-0", "go on", "7"),
        ("7-12-1", "stop", "7"),
    ]


def test_what_cannot_be_used_is_dropped_with_its_reason(tmp_path):
    source = write_manifest(
        tmp_path / "source",
        [
            {"id": "good", "duration": 1.0},
            {"id": "mute", "duration": 1.0, "text": " "},
            {"id": "gone", "duration": 1.0, "audio": "gone.wav"},
            {"id": "short", "duration": 1.5, "audio": "good.wav"},
            {"id": "longer", "duration": 0.8, "audio": "good.wav"},
            {"id": "noise", "duration": 1.0, "audio": "manifest.jsonl"},
            {"id": "endless", "duration": 121.0, "audio": "good.wav"},
        ],
    )
    folder = tmp_path / "out"
    summary = prepare(source, folder)
    dropped = {row["id"]: row for row in map(json.loads, (folder / "dropped.jsonl").read_text().splitlines())}
    assert dropped.keys() == {"mute", "gone", "short", "longer", "noise", "endless"}
    assert dropped["mute"]["reason"] == Reason.EMPTY and "cut it" in dropped["endless"]["reason"]
    assert "gone.wav: no such audio file" in dropped["gone"]["message"]
    assert "1.00 s of audio where 1.50 s are declared" in dropped["short"]["message"]
    assert "correct the duration" in dropped["longer"]["message"] and "decoded" in dropped["noise"]["message"]
    assert summary["dropped"] == collections.Counter(row["reason"] for row in dropped.values())
    assert summary["utterances"] == 1 and [u.id for u in Corpus(folder)] == ["good"]


def test_sources_without_use_are_errors(tmp_path, monkeypatch):
    mute = write_manifest(tmp_path / "mute", [{"id": "u", "duration": 1.0, "text": ""}])
    with pytest.raises(DataError, match="no utterance can be used"):
        prepare(mute, tmp_path / "out")
    slash = write_manifest(tmp_path / "slash", [{"id": "u", "duration": 1.0, "split": "a/b"}])
    with pytest.raises(DataError, match="split 'a/b' must be"):
        prepare(slash, tmp_path / "out")
    monkeypatch.setattr(prepare_module, "_MANY", 3)
    gone = [{"id": f"u{i}", "duration": 1.0, "audio": f"{i}.wav"} for i in range(4)]
    with pytest.raises(DataError, match=r"not one of 3 utterances can be read: is the source there\?"):
        prepare(write_manifest(tmp_path / "gone", gone), tmp_path / "gone_out")


@pytest.mark.parametrize("ids_at_once", [1, 7, 1 << 20])
def test_an_id_that_occurs_twice_is_found_however_many_are_compared_at_once(tmp_path, monkeypatch, ids_at_once):
    monkeypatch.setattr(worklists, "_IDS_AT_ONCE", ids_at_once)
    some = [{"id": f"u{i}", "duration": 1.0, "audio": "x.wav"} for i in range(20)]
    make_work_lists(Settings(str(write_manifest(tmp_path / "distinct", some))), tmp_path / "fine")
    source = write_manifest(tmp_path / "source", [*some, some[4]])
    with pytest.raises(DataError, match="id 'u4' occurs more than once"):
        make_work_lists(Settings(str(source)), tmp_path / "out")


def test_splits_are_drawn_as_a_manifest_draws_them_and_texts_stay_as_they_are(tmp_path):
    """Durations are those of the files. A row that cannot be read is dropped as before."""
    some = [{"id": f"u{i}", "duration": 0.3 + i / 50, "text": f"Call {i}!", "split": ""} for i in range(30)]
    manifest = write_manifest(tmp_path / "source", some)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [{key: value for key, value in row.items() if key not in ("split", "duration")} for row in lines]
    lines.append({"id": "gone", "audio": "gone.wav", "text": "x"})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in lines))
    said = []
    lists = make_work_lists(Settings(str(manifest), RATE), tmp_path / "out", said.append)
    collections.deque(fill(lists), maxlen=0)
    assert finish(lists)["dropped"] == {Reason.UNREADABLE: 1} and said == ["no row names a split, they are drawn by id"]
    for level, text in (("none", "Call 7!"), ("basic", "call 7!"), ("english", "call seven")):
        corpus = {u.id: u for u in Corpus(tmp_path / "out", level=level)}
        expected = {u.id: u for u in load_manifest(manifest, level) if u.id != "gone"}
        assert corpus["u7"].text == text and text in Corpus(tmp_path / "out", level=level).texts()
        assert {id: (u.split, u.text) for id, u in corpus.items()} == {
            id: (u.split, u.text) for id, u in expected.items()
        }
    assert expected["u5"].duration == 0.4 and {u.split for u in expected.values()} == {"train", "dev", "test"}


# --------------------------------------------------------- kills and other harm

DIES = """
import itertools, os, runpy, signal, sys
from conformer.data import prepare, worklists
step, sys.argv = sys.argv[1], sys.argv[1:]
records, cut = prepare._Content.records, worklists._cut
def dying_records(self, rows):
    yield from itertools.islice(records(self, rows), 2 if rows.stem == step else None)
    if rows.stem == step:
        os.kill(os.getpid(), signal.SIGKILL)
def dying_cut(work, split, *arguments):
    names = cut(work, split, *arguments)
    if split == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return names
prepare._Content.records, worklists._cut = dying_records, dying_cut
runpy.run_path("prepare.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_killed_preparation_ends_as_an_undisturbed_one(manifest, prepared, tmp_path):
    """The preparation is killed while it writes work lists, then in the middle of a shard."""
    options = (f"--sample-rate={RATE}", f"--shard-hours={SHARD_HOURS!r}")
    for step, finished in (("other", []), ("train-00001", ["dev-00000", "dev-00001", "other-00000", "other-00001"])):
        arguments = [sys.executable, "-c", DIES, step, str(manifest), str(tmp_path), *options]
        assert subprocess.run(arguments, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
        assert {path.stem for path in tmp_path.glob("*.json")} >= set(finished)
        with pytest.raises(DataError, match="not prepared to its end: run the command that began it again"):
            load_utterances(config(tmp_path))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrayrecord")}
    assert {path.stem for path in stamps} == {*finished, "train-00000"} and list(tmp_path.glob("*.partial"))
    prepare(manifest, tmp_path)
    assert content(tmp_path) == content(prepared)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert is_finished(Settings(str(manifest), RATE, SHARD_HOURS), tmp_path)


def test_a_preparation_killed_while_it_cleans_up_is_finished_by_the_same_command(manifest, prepared, tmp_path):
    lists = make_work_lists(Settings(str(manifest), RATE, SHARD_HOURS), tmp_path)
    collections.deque(fill(lists), maxlen=0)

    def killed(folder):
        (folder / "train-00000.jsonl").unlink()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worklists.shutil, "rmtree", killed)
        finish(lists)
    prepare(manifest, tmp_path)
    assert content(tmp_path) == content(prepared)


def test_the_number_of_processes_changes_nothing(manifest, prepared, tmp_path):
    prepare(manifest, tmp_path, num_workers=2)
    assert content(tmp_path) == content(prepared)


def test_a_folder_belongs_to_one_preparation(manifest, prepared, tmp_path):
    with pytest.raises(DataError, match=r"preparation with shard_hours=.*: choose another folder"):
        is_finished(Settings(str(manifest), RATE, 1.0), prepared)
    with pytest.raises(DataError, match="holds other files: name a folder that is new or empty"):
        make_work_lists(Settings(str(manifest), RATE), manifest.parent)
    make_work_lists(Settings(str(manifest), RATE), tmp_path)
    with pytest.raises(DataError, match="sample_rate=4000"):
        make_work_lists(Settings(str(manifest), 8_000), tmp_path)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 40] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-70_000])


@pytest.mark.parametrize("harm", [flip, cut, pathlib.Path.unlink])
def test_a_harmed_shard_is_named_and_made_again(manifest, prepared, tmp_path, harm):
    prepare(manifest, tmp_path)
    shard = tmp_path / "train-00001.arrayrecord"
    assert not any(message for _, message in verify(tmp_path))
    harm(shard)
    expected = rf"{shard} is (damaged|missing).* run the command that prepared the corpus again"
    (message,) = [message for found, message in verify(tmp_path) if message]
    assert shard.name in message and "prepared the corpus again" in message
    with pytest.raises(DataError, match=expected):
        list(train_loader(config(tmp_path, train_splits=("train",))).batches(0, 40))
    shard.unlink(missing_ok=True)
    prepare(manifest, tmp_path)
    assert content(tmp_path) == content(prepared)


def test_a_changed_source_leaves_nothing_of_the_old_one(manifest, prepared, tmp_path):
    lines = manifest.read_text().splitlines()
    source = manifest.with_name("changed.jsonl")
    source.write_text("\n".join(lines))
    prepare(source, tmp_path)
    (tmp_path / "dev-00000.arrayrecord").unlink()
    source.write_text("\n".join(line for line in lines if '"dev"' not in line))
    prepare(source, tmp_path)
    assert Corpus(tmp_path).splits == ("other", "train") and not list(tmp_path.glob("dev-*"))


def test_summaries_that_cannot_be_used(prepared, tmp_path):
    (tmp_path / SUMMARY).write_text("{}")
    with pytest.raises(DataError, match=r"summary\.json is not a summary of prepare\.py"):
        Corpus(tmp_path)
    (tmp_path / SUMMARY).write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="format 99, this version reads 2"):
        Corpus(tmp_path)
    with pytest.raises(DataError, match="--split may be all, dev, other, train"):
        load_split(config(prepared), None, "test")


# -------------------------------------------------------------------- training


def test_training_resumes_with_the_same_batches(prepared):
    noisy = AugmentConfig(speed_factors=(0.9, 1.0), noise_probability=0.5)
    whole = list(train_loader(config(prepared, noisy)).batches(0, 40))
    for start in (1, 23):
        assert_same_batches(train_loader(config(prepared, noisy)).batches(start, 40 - start), whole[start:])


def test_an_epoch_has_the_utterances_of_the_manifest(manifest, prepared):
    def epoch(source):
        built = train_loader(config(source))
        heard = set()
        for _, batch in built.batches(0, built.steps_per_epoch):
            for audio, length, labels in zip(batch.audio, batch.audio_lengths, batch.labels, strict=True):
                heard.add((audio[:length].tobytes(), TOKENIZER.decode(labels.tolist())))
        return built.num_utterances, pytest.approx(built.seconds), built.steps_per_epoch, heard

    assert epoch(prepared) == epoch(manifest)
    assert len(epoch(prepared)[-1]) == 30


def test_words_cannot_be_spoken_into_a_prepared_corpus(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.spoken_utterances cannot join a prepared corpus: set it to 0"):
        train.train(config(prepared, spoken_utterances=1), tmp_path)


@pytest.mark.parametrize("part", [{"words": ("go",)}, {"train_minutes": 1.0}])
def test_no_part_is_taken_of_a_prepared_corpus(prepared, part):
    with pytest.raises(DataError, match=r"is prepared, and data\.words and data\.train_minutes choose from a manifest"):
        load_utterances(config(prepared, **part))


def test_evaluation_reads_a_prepared_split(manifest, prepared):
    settings = config(prepared)
    texts = {u.id: u.text for u in load_split(settings, str(manifest), "dev")}
    broken: dict[str, str] = {}
    seen = {u.id: u.text for rows, _ in eval_batches(settings, load_split(settings, None, "dev"), broken) for u in rows}
    assert seen == texts and not broken
    assert len(load_split(settings, str(prepared), "all")) == 40


def test_transcripts_that_do_not_fit_leave_rows_empty_and_are_counted(tmp_path, monkeypatch):
    good = [{"id": f"u{i}", "duration": 0.8} for i in range(8)]
    bad = [
        {"id": "accent", "duration": 0.8, "text": "été"},
        {"id": "fast", "duration": 0.8, "text": "a" * 15},
        {"id": "dense", "duration": 0.8, "text": "ab" * 12},
        {"id": "long", "duration": 2.5},
    ]
    prepare(write_manifest(tmp_path / "source", good + bad), tmp_path / "out")
    settings = config(tmp_path / "out", train_splits=("train",))
    built = train_loader(settings)
    assert built.num_utterances == 11 and {k: len(v) for k, v in built.dropped.items()} == {Reason.TOO_LONG: 1}
    weights = [batch.weights for _, batch in built.batches(0, 11)]  # of four rows: four epochs
    assert np.size(weights) == built.num_rows == 44
    assert 44 - np.sum(weights) == built.left_empty.total() and not built.broken
    assert set(built.left_empty) == {Reason.ALPHABET, Reason.INFEASIBLE, Reason.TOO_MANY_LABELS}
    assert any(line.endswith(Reason.ALPHABET) for line in built.left_out())
    monkeypatch.setattr(loader_module, "_FEW_ROWS", 8)
    strict = TrainLoader(settings, Corpus(tmp_path / "out"), CharTokenizer(["<blk>", "x"]), frames)
    with pytest.raises(DataError, match=r"most of what is read cannot be trained on .*: check the tokenizer"):
        list(strict.batches(0, 11))


# ---------------------------------------------------------------------- memory


def test_a_billion_utterances_cost_no_more_than_their_shards(tmp_path):
    shard = {"split": "train", "utterances": 500_000_000, "seconds": 1e9, "bytes": 1, "sha256": ""}
    steps = [[[10, 300_000_000, 3e8], [20, 200_000_000, 4e8]], [[20, 500_000_000, 1e9]]]
    shards = [shard | {"name": f"train-{i:05}", "steps": steps[i]} for i in range(2)]
    (tmp_path / SUMMARY).write_text(json.dumps({"format": FORMAT, "splits": {"train": {}}, "shards": shards}))
    tracemalloc.start()
    corpus = Corpus(tmp_path)
    settings = config(tmp_path, bucket_seconds=(1.0, 2.0))
    built = TrainLoader(settings, corpus, TOKENIZER, frames)
    plan = built._reader._plan
    batches = [plan.batch(step) for step in (0, 10**8, 10**12)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(corpus) == built.num_utterances == 10**9 and peak < 1 << 20
    assert all(0 <= member < 10**9 for _, members in batches for member in members)
    rules = Rules(TOKENIZER, make_buckets(settings.data, RATE), (1.0,), frames)
    assert select(corpus, rules).members == (range(300_000_000), range(300_000_000, 10**9))


def test_work_lists_are_made_in_constant_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(worklists, "NUM_TEXTS", 10)
    monkeypatch.setattr(worklists, "_SPOOL_BYTES", 5_000)
    monkeypatch.setattr(worklists, "_IDS_AT_ONCE", 100)
    peaks = []
    for size in (100, 1_000):
        some = [{"id": f"u{i}", "duration": 0.5 + i % 7, "audio": "x.wav", "text": f"t {i}"} for i in range(size)]
        source = write_manifest(tmp_path / str(size), some)
        tracemalloc.start()
        lists = make_work_lists(Settings(str(source), shard_hours=1.0), tmp_path / f"out{size}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(len(lists.list(name).read_text().splitlines()) for name in lists.names) == size
        assert len((lists.work / "train.txt").read_text().splitlines()) == 10
    assert peaks[1] < 1.5 * peaks[0]


# --------------------------------------------------------------------- command


def test_the_command_prepares_once_and_verifies(manifest, tmp_path, capsys):
    settings, folder = Settings(str(manifest), RATE, SHARD_HOURS), tmp_path / "out"
    for first in (f"reading {manifest}", f"{folder} is prepared already"):
        command.prepare(settings, folder, num_workers=1)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == first and "train: 20 utterances, 0.01 h, 2 speakers" in lines
    command.check(folder)
    assert "all 7 shards are as they were written" in capsys.readouterr().out
    flip(folder / "dev-00001.arrayrecord")
    with pytest.raises(SystemExit, match=r"prepare\.py: .*dev-00001\.arrayrecord is damaged \(its checksum differs"):
        command.check(folder)


def test_the_command_says_what_is_wrong(tmp_path):
    arguments = [sys.executable, "prepare.py", str(tmp_path / "nowhere"), str(tmp_path / "out")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("prepare.py: ") and "nowhere does not exist" in done.stderr
