"""Subtitles against the rules of their formats, and the files that transcripts are written to."""

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.streaming.outputs import Writer, output_paths
from conformer.streaming.subtitles import LINE, LINES, PAUSE, SHORTEST, Cues
from conformer.streaming.transcript import Segment, TimedToken, Word
from conformer.system import OutputError

CLOCK = r"(\d\d):([0-5]\d):([0-5]\d)[.,](\d\d\d)"


def segment(*words) -> Segment:
    return Segment(" ".join(word.text for word in words), words, words[0].start, words[-1].end, 0.5, ())


def written(format, *segments) -> str:
    writer = Writer(format, "a.wav")
    return writer.begin() + "".join(map(writer.segment, segments)) + writer.end()


def seconds(clock) -> float:
    hours, minutes, whole, milliseconds = map(int, clock)
    return 3600 * hours + 60 * minutes + whole + milliseconds / 1000


def cues(text, format) -> list[tuple[float, float, list[str]]]:
    """Reads subtitles as strictly as the format allows: (start, end, lines) of each cue, in seconds."""
    found = []
    if format == "vtt":
        header, text = text.split("\n\n", 1)
        assert header == "WEBVTT"
    assert text.endswith("\n\n")
    for number, block in enumerate(text.removesuffix("\n\n").split("\n\n"), 1):
        head, *lines = block.split("\n")
        if format == "srt":
            assert head == str(number)
            head, *lines = lines
        mark = "," if format == "srt" else "."
        match = re.fullmatch(rf"{CLOCK} --> {CLOCK}", head)
        assert match and head.count(mark) == 2
        found.append((seconds(match.groups()[:4]), seconds(match.groups()[4:]), lines))
    return found


@st.composite
def speech(draw) -> list[Segment]:
    """Segments of words that follow each other, with pauses or without."""
    end, segments = 0.0, []
    for _ in range(draw(st.integers(1, 4))):
        words = []
        for _ in range(draw(st.integers(1, 30))):
            start = end + draw(st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.3, 0.7, 3.0]))
            end = start + draw(st.sampled_from([0.04, 0.2, 0.5, 2.0]))
            words.append(
                Word(draw(st.sampled_from(["a", "wind", "a&b<c>", "understanding", "x" * 100])), start, end, 1.0)
            )
        segments.append(segment(*words))
    return segments


@pytest.mark.parametrize("format", ["srt", "vtt"])
@settings(max_examples=100)
@given(segments=speech())
@pytest.mark.slow_but("srt")
def test_cues_can_be_read(format, segments):
    found = cues(written(format, *segments), format)
    for start, end, lines in found:
        assert end - start >= SHORTEST - 0.002
        assert 1 <= len(lines) <= LINES and all(lines)
        for line in lines:
            plain = line.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">") if format == "vtt" else line
            assert len(plain) <= LINE and "-->" not in line
            assert format == "srt" or not re.search(r"[<>]|&(?!amp;|lt;|gt;)", line)
    for (_, end, _), (start, _, _) in itertools.pairwise(found):
        assert start >= end
    shown = "".join("".join(lines) for _, _, lines in found).replace(" ", "")
    said = "".join(segment.text for segment in segments).replace(" ", "")
    assert shown == (said if format == "srt" else said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def test_a_cue_ends_at_a_pause_and_begins_with_its_first_word():
    said = segment(Word("turn", 1.5, 1.9, 1.0), Word("left", 2.0, 2.6, 1.0), Word("go", 2.6 + PAUSE + 0.1, 3.4, 1.0))
    assert written("srt", said) == (
        "1\n00:00:01,500 --> 00:00:02,600\nturn left\n\n2\n00:00:03,300 --> 00:00:04,300\ngo\n\n"
    )
    late = segment(Word("up", 3_725.5, 3_727.0, 1.0))
    assert written("vtt", late) == "WEBVTT\n\n01:02:05.500 --> 01:02:07.000\nup\n\n"
    assert written("srt") == "" and written("vtt") == "WEBVTT\n\n"


def test_a_word_of_the_next_segment_joins_a_cue_that_would_be_too_short():
    first, second = segment(Word("go", 1.0, 1.1, 1.0)), segment(Word("up", 1.8, 2.5, 1.0))
    assert cues(written("srt", first, second), "srt") == [(1.0, 2.5, ["go up"])]


def test_a_full_cue_is_cut_at_its_longest_gap():
    words = [Word("eleven", 0.5 * i, 0.5 * i + 0.5, 1.0) for i in range(14)]
    words[9:] = [word._replace(start=word.start + 0.2, end=word.end + 0.2) for word in words[9:]]
    found = cues(written("srt", segment(*words)), "srt")
    assert [start for start, _, _ in found] == [0.0, 4.7]
    assert abs(len(found[0][2][0]) - len(found[0][2][1])) <= len("eleven ")
    assert Cues().finish() == []


def test_json_names_the_source_and_holds_words_and_tokens():
    said = segment(Word("go", 1.0, 1.4, 0.9))._replace(tokens=(TimedToken("▁go", 1.2, 0.95),))
    record = json.loads(written("json", said))
    assert record["source"] == "a.wav" and record["confidence"] == 0.5
    assert record["words"] == [{"text": "go", "start": 1.0, "end": 1.4, "confidence": 0.9}]
    assert record["tokens"] == [{"symbol": "▁go", "time": 1.2, "probability": 0.95}]
    assert written("txt", said, said) == "go\ngo\n"


def test_every_source_has_a_file_of_its_own(tmp_path):
    sources = ["x/a.wav", "y/a.flac", "b.wav", "A.wav", "a-2.wav", "-", "-"]
    names = [path.name for path in output_paths(tmp_path / "new", sources, "srt")]
    assert names == ["a.srt", "a-2.srt", "b.srt", "A-3.srt", "a-2-2.srt", "stdin.srt", "stdin-2.srt"]
    assert not (tmp_path / "new").exists()
    taken = tmp_path / "a.json"
    taken.touch()
    with pytest.raises(OutputError, match="would replace a source"):
        output_paths(tmp_path, [str(taken)], "json")
    with pytest.raises(OutputError, match="is a file"):
        output_paths(taken, ["b.wav"], "json")
