"""Finds when words were spoken: the decoder gives their order and rough place, the loudness their start and end.

CTC emits a token somewhere inside its word, or a little beside it, and says nothing of where the word begins and ends.
Hence the stretches s_1 < e_1 <= s_2 < e_2 ... of a segment's words are those that make

    sum over words of  (speech in the stretch - STRAY (frames from its emission to the stretch) - valley at its start)

largest. Speech counts each frame from -1 to 1 by how far it is above what is loud for a pause. Between two words that
touch, the border falls where it is quietest. No number here belongs to one model: it was chosen on models that emit at
the beginning, in the middle and at the end of words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernels.typing import Float

PAUSE_SHARE = 0.1  # loudness up to here, between quiet and loud, is a pause
QUIET, LOUD = 10, 90  # percentiles
SILENCE = 0.0  # dB, less than the last bit of 16 (see `filterbank`): digital silence, no pause of the recording
RANGE = 45.0  # dB below loud: what is quieter is as quiet
SLOPE = 6.0  # dB above the limit to be speech for certain
STRAY = 0.1  # a frame's worth of an emission before its word, or behind it
EARLY, EARLY_FREE = 0.05, 20  # of a word that begins long before its emission or lasts long behind it; frames
TIE = 1e-3  # of any frame between them: where loudness says nothing, the emission does
CONTEXT = 1000  # frames of the past that are worth keeping for it
REACH = 100  # frames between an emission and a border of its word, at most
SHORTEST = 4  # frames of a word, which must not be more than those of one encoder frame


class Span(NamedTuple):
    """Feature frames from the first to behind the last."""

    first: int
    last: int


def align_words(levels: Float[np.ndarray, " frames"], emissions: Sequence[Span], earliest: int = 0) -> list[Span]:
    """The stretches of words.

    Args:
        levels: loudness of all feature frames that the words may lie in, and of some seconds before them, which help
            to tell speech from pauses. Frames behind the last are taken for pauses.
        earliest: frame before which none of them begins.
        emissions: of each word, in order: from the first frame of its first token to behind that of its last one.
            They do not overlap, and each has at least SHORTEST frames.
    """
    if not emissions:
        return []
    speech = _speech(levels)
    speech = np.pad(speech, (0, max(emissions[-1].last - len(speech), 0)), constant_values=-1.0)
    total = np.concatenate([[0.0], np.cumsum(speech)])
    padded = np.pad(speech, 1, mode="edge")
    valley = np.minimum(padded[1:], padded[:-1])  # at the border before each frame
    ends, best = np.full(1, earliest), np.zeros(1)  # where the words so far may end, and the best sum if by then
    steps = []
    for first, last in emissions:
        starts = np.arange(max(first - REACH, earliest), min(first + REACH, len(speech)) + 1)
        before = np.searchsorted(ends, starts, side="right") - 1
        value = np.where(before >= 0, best[before], -np.inf)
        value = value - total[starts] - valley[starts] - _stray(starts - first)
        value, chosen = _running_best(value)
        later = np.arange(max(last - REACH, starts[0] + SHORTEST), min(last + REACH, len(speech)) + 1)
        latest = np.minimum(later - SHORTEST - starts[0], len(starts) - 1)
        best, end = _running_best(value[latest] + total[later] - _stray(last - later))
        steps.append((starts, chosen, later, latest, end))
        ends = later
    spans, limit = [], len(speech)
    for starts, chosen, later, latest, end in reversed(steps):
        place = end[np.searchsorted(later, limit, side="right") - 1]
        limit = int(starts[chosen[latest[place]]])
        spans.append(Span(limit, int(later[place])))
    return spans[::-1]


def _speech(levels: np.ndarray) -> np.ndarray:
    """Computes how much each frame is speech, from -1 to 1."""
    sound = levels[levels > SILENCE]
    quiet, loud = np.percentile(sound if len(sound) else levels, [QUIET, LOUD])
    quiet = max(quiet, loud - RANGE)
    return np.clip((levels - quiet - PAUSE_SHARE * (loud - quiet)) / SLOPE, -1, 1)


def _stray(late: np.ndarray) -> np.ndarray:
    """Computes the cost of a border that lies so many frames inside its emission (late), or outside (negative)."""
    early = -late
    return STRAY * np.maximum(late, 0) + EARLY * np.maximum(early - EARLY_FREE, 0) + TIE * np.abs(late)


def _running_best(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest value up to each place, and where it is."""
    best = np.maximum.accumulate(values)
    return best, np.maximum.accumulate(np.where(values == best, np.arange(len(values)), 0))
