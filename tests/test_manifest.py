"""Manifests, packs, LibriSpeech folders, and how an utterance gives its samples."""

import json
import runpy

import numpy as np
import pytest
import soundfile

from conformer.audio import AudioError
from conformer.data.manifest import AudioFile, DataError, Pcm, Recipe, Utterance, load_manifest

ROW = {"audio": "a.wav", "duration": 1.5, "text": "go"}


def write_manifest(folder, *rows, name="manifest.jsonl"):
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_defaults_and_nemo_names(tmp_path):
    path = write_manifest(
        tmp_path, {"audio_filepath": "clips/a.wav", "duration": 1, "text": " Hello\t THERE "}, "", ROW | {"id": "b"}
    )
    first, second = load_manifest(path)
    assert (first.id, first.text, first.speaker, first.split, first.duration) == ("a", "hello there", "", "train", 1.0)
    assert isinstance(first.audio, AudioFile) and first.audio.path == tmp_path / "clips/a.wav"
    assert second.id == "b"


def test_fields_are_read(tmp_path):
    rows = [ROW | {"speaker": "ann", "split": "dev", "text": "", "note": 1}]
    (utterance,) = load_manifest(write_manifest(tmp_path, *rows))
    assert (utterance.speaker, utterance.split, utterance.text) == ("ann", "dev", "")


def test_durations_are_those_of_the_files_where_none_is_given(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(12_000), 8_000)
    row = {"audio": "a.wav", "text": "go"}
    rows = [row, row | {"id": "b", "duration": None}, row | {"id": "c", "audio": "gone.wav"}]
    found = load_manifest(write_manifest(tmp_path, *rows))
    assert [u.duration for u in found] == [1.5, 1.5, pytest.approx(float("nan"), nan_ok=True)]


def test_texts_are_spelled_at_a_level(tmp_path):
    path = write_manifest(tmp_path, ROW | {"text": "Call  7 PEOPLE!"})
    levels = {"none": "Call 7 PEOPLE!", "basic": "call 7 people!", "english": "call seven people"}
    assert {level: load_manifest(path, level)[0].text for level in levels} == levels


# -------------------------------------------------------------- drawn splits


def drawn(tmp_path, rows):
    """The splits by id, and what is said of them."""
    said = []
    utterances = load_manifest(write_manifest(tmp_path, *rows), say=said.append)
    return {u.id: u.split for u in utterances}, {u.id: u.speaker for u in utterances}, said


def test_splits_are_drawn_by_speaker_and_further_rows_move_few(tmp_path):
    rows = [ROW | {"id": f"u{i}", "speaker": f"s{i % 40}"} for i in range(400)]
    splits, speakers, (line,) = drawn(tmp_path, rows[:200])
    by_speaker = {}
    for id, split in splits.items():
        by_speaker.setdefault(speakers[id], set()).add(split)
    assert all(len(found) == 1 for found in by_speaker.values())
    counts = {split: list(splits.values()).count(split) for split in ("train", "dev", "test")}
    assert counts["train"] > 120 and min(counts.values()) >= 5
    assert "no row names a split, drawn by speaker: " in line and f"{counts['dev']} dev" in line
    assert drawn(tmp_path, rows[::-1])[0].items() >= splits.items()  # another order, and more utterances


def test_splits_are_drawn_by_id_where_speakers_cannot_be_told_apart(tmp_path):
    for speaker in ("", "ann"):
        rows = [ROW | {"id": f"u{i}", "speaker": speaker} for i in range(20)]
        splits, _, (line,) = drawn(tmp_path, rows)
        assert "drawn by id" in line and set(splits.values()) == {"train", "dev", "test"}
        assert list(splits.values()).count("train") >= 12
    for name in map(str, range(12)):  # has nearly everything: held out, it would leave nothing to train on
        rows = [ROW | {"id": f"u{i}", "speaker": name} for i in range(30)]
        rows += [ROW | {"id": f"v{i}", "speaker": f"other{i}"} for i in range(3)]
        assert list(drawn(tmp_path, rows)[0].values()).count("train") >= 15


def test_where_a_row_names_a_split_nothing_is_drawn(tmp_path):
    rows = [ROW | {"id": f"u{i}"} for i in range(20)]
    splits, _, said = drawn(tmp_path, [*rows, ROW | {"split": "test"}])
    assert said == [] and list(splits.values()) == ["train"] * 20 + ["test"]
    assert set(drawn(tmp_path, rows[:2])[0].values()) == {"train"}  # too few for three splits


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"audio": "a.wav", ', "not valid JSON"),
        ("[1]", "not a JSON object"),
        ({"audio": "b.wav", "duration": 1.0}, "'text' is missing"),
        ({"duration": 1.0, "text": "go"}, "'audio' is missing"),
        ({"audio": "b.wav", "text": "go", "duration": "1"}, "'duration' is '1', not a number"),
        ({"audio": "b.wav", "text": "go", "duration": float("nan")}, "'duration' is nan, not a number"),
        ({"audio": "b.wav", "text": "go", "duration": -1}, "'duration' is -1.0, not a positive"),
        ({"audio": "b.wav", "text": 7, "duration": 1}, "'text' is 7, not a string"),
        ({"audio": "b.wav", "text": "go", "duration": 1, "offset": 2.5}, "'offset'"),
        ({"id": "r", "text": "go", "duration": 1, "segments": [["a.wav"]]}, "'segments'"),
        ({"audio": "b.wav", "text": "go", "duration": 10**400}, "not a number"),
        ({"audio": "b.wav", "text": "a\ud800", "duration": 1}, "holds half a character"),
        ("[" * 100_000, "not valid JSON"),
        ('{"audio": "b.wav", "text": "go", "duration": ' + "1" * 5_000 + "}", "not valid JSON"),
        ('{"audio": "b.wav", "duration": 1, "text":\r"go"}', "a carriage return is no end of a line"),
    ],
)
def test_broken_line_is_named(tmp_path, line, complaint):
    path = write_manifest(tmp_path, ROW, line)
    with pytest.raises(DataError) as error:
        load_manifest(path)
    assert f"{path}:2: " in str(error.value) and complaint in str(error.value)


def test_a_part_that_begins_with_its_file_is_a_part(tmp_path):
    soundfile.write(tmp_path / "b.wav", np.full(8_000, 0.1), 8_000)
    row = {"audio": "b.wav", "text": "go", "offset": 0.0}
    for duration in (1.0, 0.95, None):  # of the whole file
        assert len(load_manifest(write_manifest(tmp_path, row | {"duration": duration}))) == 1
    with pytest.raises(DataError, match=r":1: 'offset' \(a part of a longer file\) is not supported"):
        load_manifest(write_manifest(tmp_path, row | {"duration": 0.5}))


def test_what_cannot_be_a_corpus(tmp_path):
    with pytest.raises(DataError, match=r"nothing does not exist: point data\.source"):
        load_manifest(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"neither manifest\.jsonl nor LibriSpeech"):
        load_manifest(tmp_path)
    with pytest.raises(DataError, match="no utterances"):
        load_manifest(write_manifest(tmp_path, ""))
    with pytest.raises(DataError, match="'a' occurs more than once"):
        load_manifest(write_manifest(tmp_path, ROW, ROW))
    binary = tmp_path / "speech.wav"
    soundfile.write(binary, np.full(800, 0.7), 8000)
    with pytest.raises(DataError, match=r"speech\.wav:1: byte \d+ is not UTF-8"):
        load_manifest(binary)


def test_librispeech_behind_links(tmp_path):
    """Splits may lie on other disks. A link to a folder above leads nowhere new."""
    chapter = tmp_path / "disk" / "19" / "198"
    chapter.mkdir(parents=True)
    (chapter / "19-198.trans.txt").write_text("\u200b19-198-0000 GO\n", "utf-8")  # no id holds what cannot be seen
    (chapter / "loop").symlink_to(tmp_path / "disk")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train").symlink_to(tmp_path / "disk")
    (utterance,) = load_manifest(tmp_path / "corpus")
    assert (utterance.id, utterance.speaker, utterance.split) == ("19-198-0000", "19", "train")


def test_librispeech_folder(tmp_path):
    chapter = tmp_path / "train-clean-100" / "19" / "198"
    chapter.mkdir(parents=True)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    soundfile.write(chapter / "19-198-0000.flac", np.zeros(24000), 16000)
    for folder in (tmp_path, tmp_path / "train-clean-100"):
        first, second = load_manifest(folder)
        assert (first.id, first.text, first.speaker) == ("19-198-0000", "northanger abbey", "19")
        assert (first.split, first.duration) == ("train-clean-100", 1.5)
        assert len(first.samples(16000)) == 24000
        assert second.text == "this little work" and np.isnan(second.duration)  # its audio is missing
        with pytest.raises(AudioError, match=r"19-198-0001\.flac"):
            second.samples(16000)


def test_how_lines_end_and_files_begin(tmp_path):
    rows = [ROW | {"text": "go\u2028left\x0bnow"}, ROW | {"id": "b", "text": "caf\u00e9"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "manifest.jsonl"
    for data in ("\ufeff" + "\n".join(lines), "\r\n".join([*lines, ""]), "\n\n".join([*lines, "", ""])):
        path.write_bytes(data.encode())
        assert [(u.id, u.text) for u in load_manifest(path)] == [("a", "go left now"), ("b", "caf\u00e9")]
    for encoding, name in (("latin1", "LATIN1"), ("utf-16", "UTF-16")):
        path.write_bytes("\n".join(reversed(lines)).replace("\u2028", " ").encode(encoding))
        with pytest.raises(DataError, match=rf"manifest\.jsonl:1: byte \d+ is not UTF-8: .* iconv -f {name}"):
            load_manifest(path)


def test_what_the_system_refuses_to_read_is_named(tmp_path, monkeypatch):
    path = write_manifest(tmp_path, ROW)

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("conformer.data.manifest.read_lines", refuse)
    with pytest.raises(DataError, match=r"manifest\.jsonl cannot be read \(Permission denied\)"):
        load_manifest(path)


def test_a_clip_that_is_cut_is_not_rendered(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 8000)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:1000])
    with pytest.raises(AudioError, match=r"a\.wav cannot be read .*truncated"):
        recipe(tmp_path, [("a.wav", 0)]).render()


def test_pcm_is_scaled_and_resampled():
    data = (8000 * np.sin(np.arange(8000) / 5)).astype(np.int16)
    utterance = Utterance("a", "", "", "train", 1.0, Pcm(data, 8000))
    assert np.array_equal(utterance.samples(8000), data.astype(np.float32) / 32768)
    assert utterance.samples(8000).dtype == np.float32
    assert len(utterance.samples(16000)) == 16000


def recipe(folder, segments, num_samples=4000):
    return Recipe(folder, tuple(segments), 100, num_samples, 1, -60.0, 8000)


def test_recipe_names_the_clip_at_fault(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 8000)
    soundfile.write(tmp_path / "other.wav", np.zeros(1000), 16000)
    assert len(recipe(tmp_path, [("a.wav", 0), ("a.wav", 50)]).render()) == 4000
    with pytest.raises(AudioError, match=r"a\.wav: 1000 samples do not fit"):
        recipe(tmp_path, [("a.wav", 0), ("a.wav", 50)], num_samples=2000).render()
    with pytest.raises(AudioError, match=r"gone\.wav cannot be read"):
        recipe(tmp_path, [("gone.wav", 0)]).render()
    with pytest.raises(AudioError, match=r"other\.wav must be mono at 8000 Hz"):
        recipe(tmp_path, [("other.wav", 0)]).render()


@pytest.mark.parametrize("pack", ["connected_digits_8k", "connected_words_16k"])
def test_recipes_are_bit_exact(speech_data, pack):
    reference = runpy.run_path(str(speech_data / "render_strings.py"))["render"]
    folder = speech_data / pack
    rows = [json.loads(line) for line in (folder / "recipe_train.jsonl").read_text().splitlines()]
    utterances = {utterance.id: utterance for utterance in load_manifest(folder)}
    assert {"train", "dev", "test"} == {utterance.split for utterance in utterances.values()}
    for row in rows[:: len(rows) // 5]:
        expected = reference(row, lambda path: soundfile.read(folder / path, dtype="int16")[0])
        utterance = utterances[row["id"]]
        assert isinstance(utterance.audio, Recipe) and np.array_equal(utterance.audio.render(), expected)
        assert np.array_equal(utterance.samples(row["sample_rate"]) * 32768, expected)
        assert (utterance.text, utterance.split) == (row["text"], "train")


def test_real_files_have_their_declared_length(speech_data):
    for pack in ("libri_mini", "so762_adult"):
        for utterance in load_manifest(speech_data / pack)[::500]:
            assert abs(len(utterance.samples(16000)) / 16000 - utterance.duration) < 0.01
