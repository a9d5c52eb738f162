"""The small inputs of shared/cases, each with its right answer, at the readers of files."""

import numpy as np
import pytest

from conformer.audio import AudioError, as_samples, load_audio, read_stream

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


@pytest.mark.parametrize("name", ["vbr_no_xing.mp3", "cbr_layout_no_xing_16k.mp3"])
def test_mp3_without_a_count_is_read_to_its_end(cases, name):
    """With what the encoder added before and behind, which nothing says: under 0.1 s."""
    assert 0 <= len(load_audio(cases / "mp3_vbr_no_xing" / name, RATE)) - SAMPLES < 0.1 * RATE


@pytest.mark.parametrize("name", ["half.wav", "half.aiff", "half_rf64.wav", "half_rifx.wav", "half_riff_size_0.wav"])
def test_half_a_file_is_called_truncated(cases, name):
    with pytest.raises(AudioError, match=rf"{name}: truncated"):
        load_audio(cases / "truncated_not_riff" / name, RATE)


def test_int16_is_the_same_speech(cases):
    samples = load_audio(cases / "clip_ends_with_speech" / "words-test-0008.wav", RATE)
    np.testing.assert_array_equal(as_samples((samples * 32_768).astype(np.int16)), samples)
