"""A part of a corpus: words that are named, minutes that are trained on; and sources that join it."""

import dataclasses
import json

import numpy as np
import pytest

from conformer.config import Config, ConfigError, DataConfig
from conformer.data import DataError, Pcm, Utterance, load_split, load_utterances
from conformer.data.subset import subset

SILENCE = Pcm(np.zeros(100, np.int16), 100)


def corpus(count: int = 60, seconds: float = 6.0) -> list[Utterance]:
    splits, texts = ("train", "train", "dev"), ("two four", "two", "nine two", "")
    return [Utterance(f"u{i}", texts[i % 4], "", splits[i % 3], seconds, SILENCE) for i in range(count)]


def ids(utterances: list[Utterance]) -> set[str]:
    return {utterance.id for utterance in utterances}


def test_utterances_with_other_words_are_left_out_of_every_split():
    chosen = subset(DataConfig(words=("two", "four")), corpus())
    assert ids(chosen) == {f"u{i}" for i in range(60) if i % 4 != 2}
    assert {utterance.split for utterance in chosen} == {"train", "dev"}


@pytest.mark.parametrize("minutes", [0.1, 1.0, 1.55, 100.0])
def test_minutes_are_those_of_the_train_splits(minutes):
    utterances = corpus()
    chosen = subset(DataConfig(train_minutes=minutes), utterances)
    training = [utterance for utterance in chosen if utterance.split == "train"]
    assert len(training) == min(int(minutes * 10 + 1e-9), 40)
    assert ids(utterances) - ids(chosen) <= {u.id for u in utterances if u.split == "train"}
    assert chosen == [utterance for utterance in utterances if utterance.id in ids(chosen)]  # in their order


def test_fewer_minutes_are_a_part_of_more_in_whatever_order():
    utterances = corpus()
    one, two = (ids(subset(DataConfig(train_minutes=minutes), utterances)) for minutes in (1.0, 2.0))
    assert one < two and two == ids(subset(DataConfig(train_minutes=2.0), utterances[::-1]))


def test_unknown_durations_are_kept_for_the_loader_to_report():
    assert len(subset(DataConfig(train_minutes=1.0), corpus(3, float("nan")))) == 3


def write(path, utterances) -> str:
    rows = [{"audio": f"{u.id}.wav", "text": u.text, "duration": u.duration, "split": u.split} for u in utterances]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def renamed(utterances, prefix: str):
    return [dataclasses.replace(u, id=f"{prefix}-{u.id}") for u in utterances]


def test_the_train_splits_of_further_sources_join(tmp_path):
    sources = [write(tmp_path / f"{name}.jsonl", renamed(corpus(), name)) for name in "abc"]
    config = Config(data=DataConfig(source=sources[0], also_train=tuple(sources[1:])))
    joined = load_utterances(config)
    for split, prefixes in (("train", {"a", "b", "c"}), ("dev", {"a"})):
        assert {u.id.split("-")[0] for u in joined if u.split == split} == prefixes
    assert len(joined) == len(corpus()) + 2 * sum(u.split == "train" for u in corpus())
    assert {u.id[0] for u in load_split(config, None, "train")} == {"a"}


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (corpus(), r"has an utterance '.*', as another source has: rename one"),
        (renamed([u for u in corpus() if u.split == "dev"], "b"), r"has no utterance in data\.train_splits"),
    ],
)
def test_a_further_source_that_adds_nothing_or_the_same_is_refused(tmp_path, also, message):
    source, other = write(tmp_path / "a.jsonl", corpus()), write(tmp_path / "b.jsonl", also)
    with pytest.raises(DataError, match=message):
        load_utterances(Config(data=DataConfig(source=source, also_train=(other,))))


def test_a_run_and_its_evaluation_see_the_part_and_a_manifest_is_seen_whole(tmp_path):
    path = write(tmp_path / "manifest.jsonl", corpus())
    config = Config(data=DataConfig(source=path, words=("two",), train_minutes=1.0))
    assert ids(list(load_utterances(config))) == ids(subset(config.data, corpus()))
    assert len(load_split(config, None, "dev")) == 10
    assert len(load_split(config, path, "dev")) == 20
    assert ids(load_split(config, path, "dev,train")) == ids([u for u in corpus() if u.split in ("dev", "train")])
    with pytest.raises(DataError, match="no utterance in split 'tset': --split may be all, dev, "):
        load_split(config, path, "dev,tset")


def test_negative_minutes_are_refused():
    with pytest.raises(ConfigError, match=r"data\.train_minutes=-1\.0 must not be negative"):
        Config(data=DataConfig(train_minutes=-1.0))
