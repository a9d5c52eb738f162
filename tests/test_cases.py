"""The small inputs of shared/cases, each with its right answer, at the readers of files."""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from conformer.audio import AudioError, as_samples, load_audio, read_stream
from conformer.config import Config
from conformer.data.manifest import DataError, load_manifest
from conformer.decode.greedy import GreedyDecoder
from conformer.decode.prefix_beam import PrefixBeamDecoder
from conformer.model import ConformerCTC
from conformer.streaming import EndpointConfig, Recognizer, Transcript, windows_of
from conformer.streaming.engine import Engine
from conformer.tokenizer import Tokenizer
from conformer.training.checkpoint import load_model

RATE = 16_000
SAMPLES = 61_233  # of the four words that most of the audio files say


@pytest.mark.parametrize(
    "name",
    [
        "mp3_vbr_no_xing/vbr_with_xing.mp3",
        "flac_streamed_unknown_length/streamed.flac",
        "wav_sizes_zero_or_over/size_zero.wav",
        "wav_sizes_zero_or_over/riff_16_over.wav",
    ],
)
def test_all_samples_are_read(cases, name):
    samples = load_audio(cases / name, RATE)
    assert len(samples) == SAMPLES
    with (cases / name).open("rb") as file:
        np.testing.assert_allclose(np.concatenate(list(read_stream(file, name, RATE, 0.1))), samples, atol=1e-6)


@pytest.mark.parametrize(("name", "tolerance"), [("vbr_no_xing.mp3", 1e-6), ("cbr_layout_no_xing_16k.mp3", 0.05)])
def test_mp3_without_a_count_is_read_to_its_end(cases, name, tolerance):
    """The same samples, and behind them what the encoder added, which nothing says."""
    samples = load_audio(cases / "mp3_vbr_no_xing" / name, RATE)
    expected = load_audio(cases / "mp3_vbr_no_xing" / "vbr_with_xing.mp3", RATE)
    np.testing.assert_allclose(samples[: SAMPLES - 100], expected[:-100], atol=tolerance)
    np.testing.assert_allclose(samples[:SAMPLES], expected, atol=max(tolerance, 1e-4))  # the resampler hears the rest
    assert len(samples) < SAMPLES + 0.03 * RATE and np.abs(samples[SAMPLES:]).max() < 1e-3


def test_files_and_pipes_of_files_are_transcribed(cases):
    root = pathlib.Path(__file__).parents[1]
    names = ["mp3_vbr_no_xing/vbr_no_xing.mp3", "mp3_vbr_no_xing/cbr_layout_no_xing_16k.mp3"]
    names += ["flac_streamed_unknown_length/streamed.flac", "wav_sizes_zero_or_over/size_zero.wav"]
    with subprocess.Popen(["cat", cases / "wav_sizes_zero_or_over" / "size_zero.wav"], stdout=subprocess.PIPE) as cat:
        out = subprocess.run(
            [sys.executable, "transcribe.py", "--workdir=models/words", *(cases / name for name in names), "-"],
            cwd=root,
            stdin=cat.stdout,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    final = [line.split("final")[1].strip() for line in out.splitlines() if "final" in line]
    assert final == ["left go down down"] * 5


@pytest.mark.parametrize("name", ["half.wav", "half.aiff", "half_rf64.wav", "half_rifx.wav", "half_riff_size_0.wav"])
def test_half_a_file_is_called_truncated(cases, name):
    with pytest.raises(AudioError, match=rf"{name}: truncated"):
        load_audio(cases / "truncated_not_riff" / name, RATE)


def test_int16_is_the_same_speech(cases):
    samples = load_audio(cases / "clip_ends_with_speech" / "words-test-0008.wav", RATE)
    np.testing.assert_array_equal(as_samples((samples * 32_768).astype(np.int16)), samples)


# --------------------------------------------------------------------- borders


@pytest.fixture(scope="module")
def words() -> tuple[Config, ConformerCTC, Tokenizer]:
    return load_model(pathlib.Path(__file__).parents[1] / "models" / "words")[:3]


@pytest.mark.slow
def test_no_limit_of_a_segment_changes_the_words(cases, words):
    config, model, tokenizer = words
    engine = Engine(config, model)
    samples = load_audio(cases / "segment_cut_doubles_word" / "speech.flac", RATE)
    chunks, levels = [], []
    for features, num_frames, heard in windows_of(engine.framing, samples):
        chunks.append(engine(features[None], np.full(1, num_frames, np.int32))[0, :num_frames])
        levels.append(heard)
    log_probs = np.concatenate(chunks)
    levels = np.concatenate(levels).reshape(len(log_probs), -1)

    def recognise(decoder, endpoint, pieces=1) -> Transcript:
        transcript = Transcript(tokenizer, engine.framing, decoder=decoder, endpoint=endpoint)
        for some in np.array_split(np.arange(len(log_probs)), pieces):
            transcript.decode(log_probs[some], levels[some].ravel())
        transcript.finish()
        return transcript

    limits = (0.1, 0.5, 1.0, 1.7, 3.0, 5.0, 9.0, 13.0, 21.0, 29.0, 30.0)
    for decoder, every in ((GreedyDecoder, 1), (PrefixBeamDecoder, 4)):
        whole = recognise(decoder, None)
        assert len(whole.text.split()) == len(whole.words) > 40
        for index, longest in enumerate(limits[::every]):
            cut = recognise(decoder, EndpointConfig(longest=longest), pieces=63 * (1 + index % 5))
            assert cut.text == whole.text
            # What is loud, and what a pause, is told from the sound so far: times may differ a little.
            times = np.array([[word[1:3] for word in words] for words in (whole.words, cut.words)])
            assert np.median(abs(times[0] - times[1])) <= 0.02 and (abs(times[0] - times[1]) <= 0.1).mean() > 0.8
            assert len(cut.segments) >= 40 / (longest + 2)
            assert all(segment.end - segment.start < longest + 6 for segment in cut.segments)
            assert all(a.end <= b.start for a, b in itertools.pairwise(cut.segments))


def test_audio_that_ends_with_its_last_word(cases, words):
    """Half a second of silence is heard behind it: the words are those of the clip with such silence in it."""
    config, model, tokenizer = words
    recognizer = Recognizer(Engine(config, model), tokenizer)
    for name in ("words-test-0008", "words-test-0014"):
        texts = []
        for end in ("", "_padded"):
            samples = load_audio(cases / "clip_ends_with_speech" / f"{name}{end}.wav", RATE)
            recognizer.reset()
            recognizer.accept(samples)
            texts.append(recognizer.finish())
            seconds = len(samples) / RATE
            assert recognizer.stream.audio.audio_seconds == seconds
            assert max(recognizer.words[-1].end, recognizer.segments[-1].end) <= round(seconds, 3)
        assert texts[0] == texts[1] != ""


# ------------------------------------------------------------------------ text


@pytest.mark.parametrize("name", ["trans_bom", "trans_line_separators"])
def test_two_utterances_with_audio(cases, name):
    utterances = load_manifest(cases / name / "LS")
    assert [utterance.id for utterance in utterances] == ["19-198-0000", "19-198-0001"]
    assert [utterance.text for utterance in utterances] in (["go left", "up"], ["go left", "up down"])
    assert [len(utterance.samples(RATE)) for utterance in utterances] == [RATE, RATE]
    assert [utterance.duration for utterance in utterances] == [1.0, 1.0]


def test_a_latin1_file_is_named(cases):
    with pytest.raises(DataError, match=r"19-198\.trans\.txt:1: byte 16 is not UTF-8"):
        load_manifest(cases / "trans_latin1" / "LS")


def test_language_models_do_not_depend_on_case_or_on_a_byte_order_mark(cases, tmp_path):
    """Equal models give equal error rates."""
    root = pathlib.Path(__file__).parents[1]
    folder = cases / "lm_text_case"
    processes = [
        subprocess.Popen(
            [sys.executable, "lm.py", f"--manifest={folder / 'one.jsonl'}", f"--text={folder / name}.txt", out],
            cwd=root,
            stdout=subprocess.DEVNULL,
        )
        for name in ("lower", "UPPER", "bom")
        for out in [f"--out={tmp_path / name}.arpa"]
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    lower, upper, bom = ((tmp_path / f"{name}.arpa").read_bytes() for name in ("lower", "UPPER", "bom"))
    assert lower == upper == bom and b"retain" in lower
