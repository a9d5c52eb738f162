"""Words placed by loudness and emissions: synthetic stretches of sound whose borders are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.streaming.alignment import REACH, SHORTEST, Span, align_words


def levels(spans, length, floor=20.0, peak=60.0):
    """Loud in the spans, quiet elsewhere, with some noise."""
    values = np.full(length, floor)
    for first, last in spans:
        values[first:last] = peak
    return values + np.random.default_rng(0).normal(0, 1, length)


WORDS = [Span(30, 70), Span(90, 130), Span(200, 230)]


@pytest.mark.parametrize("delay", [-15, 5, 25])
@pytest.mark.parametrize("floor", [-100.0, 20.0, 35.0])
def test_words_between_pauses_begin_and_end_with_their_sound_wherever_they_were_emitted(delay, floor):
    emissions = [Span(first + delay, first + delay + SHORTEST) for first, _ in WORDS]
    assert np.abs(np.subtract(align_words(levels(WORDS, 300, floor), emissions), WORDS)).max() <= 2


def test_words_that_touch_part_where_it_is_quietest():
    sound = levels([Span(30, 130)], 200)
    sound[78:82] -= 12.0
    first, second = align_words(sound, [Span(50, 54), Span(100, 104)])
    assert (first.first, second.last) == (30, 130)
    assert 78 <= first.last <= second.first <= 82


def test_what_is_said_before_the_earliest_frame_belongs_to_no_word():
    (word,) = align_words(levels(WORDS, 300), [Span(110, 114)], earliest=100)
    assert word == Span(100, 130)
    assert align_words(np.zeros(9), []) == []


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), num_words=st.integers(1, 40), spread=st.sampled_from([0, 3, 90]))
def test_words_are_in_order_and_near_their_emissions_whatever_is_heard(seed, num_words, spread):
    rng = np.random.default_rng(seed)
    lengths = SHORTEST * rng.integers(1, 5, num_words)
    gaps = SHORTEST * rng.integers(0, spread + 1, num_words)
    starts = np.cumsum(gaps) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    emissions = [Span(int(first), int(first + length)) for first, length in zip(starts, lengths, strict=True)]
    heard = rng.choice([0.0, 40.0]) * rng.random(emissions[-1].last + int(rng.integers(0, 50)))
    spans = align_words(heard, emissions)
    assert len(spans) == num_words
    borders = [border for span in spans for border in span]
    assert borders == sorted(borders) and borders[0] >= 0 and borders[-1] <= len(heard)
    for span, emission in zip(spans, emissions, strict=True):
        assert span.last - span.first >= SHORTEST
        assert abs(span.first - emission.first) <= REACH and abs(span.last - emission.last) <= REACH


def test_digital_silence_behind_the_audio_moves_no_border():
    emissions = [Span(first + 5, first + 5 + SHORTEST) for first, _ in WORDS]
    sound = levels(WORDS, 300)
    assert align_words(np.append(sound, np.full(100, -50.0)), emissions) == align_words(sound, emissions)
