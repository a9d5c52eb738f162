"""Greedy CTC decoding (best path: Graves et al., 2006, section 3.2): the best symbol of each frame, runs of it merged,
blanks dropped.
"""

from typing import NamedTuple

import numpy as np

from conformer.tokenizer import BLANK
from kernels.typing import Float


class Token(NamedTuple):
    """One emitted unit."""

    id: int
    frame: int  # encoder frame at which it is emitted: the first of its run
    log_prob: float  # natural logarithm of its probability at that frame


class GreedyDecoder:
    """Decodes one utterance as its frames arrive: however it is cut into pieces, the tokens are the same."""

    def __init__(self):
        self._last = BLANK
        self._num_frames = 0

    def step(self, log_probs: Float[np.ndarray, "frames vocab"]) -> list[Token]:
        """The tokens that these frames, the next ones, add. A token is final at the first frame of its run."""
        ids = log_probs.argmax(axis=1)
        before = np.concatenate([[self._last], ids])
        frames = np.flatnonzero((ids != before[:-1]) & (ids != BLANK))
        tokens = [
            Token(int(ids[frame]), self._num_frames + int(frame), float(log_probs[frame, ids[frame]]))
            for frame in frames
        ]
        self._last = int(before[-1])
        self._num_frames += len(ids)
        return tokens


def greedy(log_probs: Float[np.ndarray, "frames vocab"]) -> list[Token]:
    """The tokens of a whole utterance."""
    return GreedyDecoder().step(log_probs)
