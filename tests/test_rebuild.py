"""The packs that results name, rebuilt from small imitations of the public data sets; their lists beside the packs."""

import json

import numpy as np
import pytest
import soundfile

from conformer.data import DataError, load_manifest, rebuild
from conformer.data.manifest import Recipe


@pytest.fixture
def lists(tmp_path, monkeypatch):
    monkeypatch.setattr(rebuild, "LISTS", tmp_path)

    def write(name: str, *rows: str) -> None:
        (tmp_path / name).write_text("".join(row.replace(" | ", "\t") + "\n" for row in rows))

    return write


def write_speech(path, seconds: float, start: float = 0.0) -> np.ndarray:
    """A second of faint noise, with a loud tone in it."""
    rng = np.random.default_rng(0)
    clip = rng.integers(-3, 4, 16_000).astype(np.int16)
    size, first = int(16_000 * seconds), int(16_000 * start)
    clip[first : first + size] = (8000 * np.sin(np.arange(size) + 1)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip, 16_000)
    return clip[first : first + size]


def test_libri_mini_is_a_manifest_of_librispeech(tmp_path, lists):
    lists("libri_mini.tsv", "split | chapter | utterances", "train | 1-2 | 0-1,3", "test | 3-4 | 0")
    source = tmp_path / "LibriSpeech"
    for split, chapter, count in (("train-clean-5", "1/2", 5), ("test-clean", "3/4", 1)):
        stem = chapter.replace("/", "-")
        for number in range(count):
            write_speech(source / split / chapter / f"{stem}-{number:04d}.flac", 0.5)
        texts = "".join(f"{stem}-{number:04d} THE TEXT IS {number}\n" for number in range(count))
        (source / split / chapter / f"{stem}.trans.txt").write_text(texts)
    rebuild.rebuild_libri_mini(source, tmp_path / "out" / "pack")
    utterances = load_manifest(tmp_path / "out" / "pack")
    assert [(u.id, u.split, u.speaker) for u in utterances] == [
        *((f"1-2-000{number}", "train", "libri-1") for number in (0, 1, 3)),
        ("3-4-0000", "test", "libri-3"),
    ]
    assert utterances[2].text == "the text is 3" and len(utterances[3].samples(16_000)) == 16_000


def test_a_source_without_most_of_the_list_is_an_error(tmp_path, lists):
    lists("libri_mini.tsv", "split | chapter | utterances", "train | 1-2 | 0-9")
    with pytest.raises(DataError, match=r"lacks 10 of 10 utterances.*1-2-0000: download"):
        rebuild.rebuild_libri_mini(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_words_are_joined_as_recorded(tmp_path, lists):
    lists("words_clips.tsv", "word | speaker | take | samples", "go | a | 0 | 4800", "up | a | 1 | 3200")
    lists(
        "words_train.tsv",
        "speaker | lead | tail | noise_seed | noise_dbfs | clips",
        "a | 50 | 70 | 7 | -60.5 | go-0 900 up-1",
    )
    lists(
        "words_evaluation.tsv", "split | speaker | samples | text", "dev | b | 48000 | go up", "test | b | 100 | up go"
    )
    source, out = tmp_path / "commands", tmp_path / "out"
    go = write_speech(source / "go/a_nohash_0.wav", 0.3, 0.41)
    write_speech(source / "up/a_nohash_1.wav", 0.2, 0.1)
    write_speech(source / "go/b_nohash_3.wav", 0.25, 0.5)
    write_speech(source / "up/b_nohash_0.wav", 0.25, 0.2)
    rebuild.rebuild_words(source, out)
    by_id = {u.id: u for u in load_manifest(out)}
    assert list(by_id) == ["sc-go-a-0", "sc-up-a-1", "words-train-00000", "words-dev-0000", "words-test-0000"]
    np.testing.assert_array_equal(by_id["sc-go-a-0"].samples(16_000), go / np.float32(32768))

    string = by_id["words-train-00000"]
    assert isinstance(string.audio, Recipe) and (string.text, string.speaker, string.split) == (
        "go up",
        "sc-a",
        "train",
    )
    assert string.audio.segments == (("clips/a/go-0.flac", 0), ("clips/a/up-1.flac", 900))
    assert (string.audio.lead, string.audio.num_samples, string.audio.noise_seed) == (
        50,
        50 + 4800 + 900 + 3200 + 70,
        7,
    )
    heard = np.flatnonzero(np.abs(string.samples(16_000)) > 0.1)
    assert 50 <= heard[0] < 100 and string.audio.num_samples - 120 <= heard[-1] < string.audio.num_samples - 70

    assert by_id["words-dev-0000"].duration == 3.0 and len(by_id["words-dev-0000"].samples(16_000)) == 48_000
    assert by_id["words-test-0000"].duration > 0.5  # which makes room for the words where the length does not
    first = (out / "manifest.jsonl").read_bytes()
    rebuild.rebuild_words(source, out)
    assert (out / "manifest.jsonl").read_bytes() == first


def test_the_lists_hold_what_was_measured(speech_data):
    def described(pack: str) -> list[tuple[str, str, str]]:
        rows = [json.loads(line) for line in (speech_data / pack / "manifest.jsonl").read_text().splitlines()]
        return sorted((row["split"], row["speaker"], row["id"]) for row in rows)

    listed = []
    for row in rebuild._read_list("libri_mini.tsv"):
        ids = rebuild._ids(row["chapter"], row["utterances"])
        listed += [(row["split"], f"libri-{row['chapter'].split('-')[0]}", id) for id in ids]
    assert sorted(listed) == described("libri_mini")
    clips = [
        ("train", f"sc-{row['speaker']}", f"sc-{row['word']}-{row['speaker']}-{row['take']}")
        for row in rebuild._read_list("words_clips.tsv")
    ]
    measured = described("connected_words_16k")
    assert sorted(clips) == [row for row in measured if row[0] == "train"]
    strings = rebuild._read_list("words_evaluation.tsv")
    speakers = sorted((row["split"], f"sc-{row['speaker']}") for row in strings)
    assert speakers == [row[:2] for row in measured if row[0] != "train"]
    recipes = (speech_data / "connected_words_16k" / "recipe_train.jsonl").read_text().splitlines()
    assert len(rebuild._read_list("words_train.tsv")) == len(recipes)
