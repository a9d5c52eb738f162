"""The interface of a streaming decoder, and greedy CTC decoding (best path: Graves et al., 2006, section 3.2): the best
symbol of each frame, runs of it merged, blanks dropped.
"""

import abc
from typing import NamedTuple

import numpy as np

from conformer.tokenizer import BLANK
from kernels.typing import Float


class Token(NamedTuple):
    """One emitted unit."""

    id: int
    frame: int  # encoder frame at which it is emitted, the first of its run; counts from the decoder's first
    log_prob: float  # natural logarithm of its probability at that frame


class Hypothesis(NamedTuple):
    """One labelling."""

    tokens: list[Token]
    log_prob: float  # natural logarithm of its CTC probability: the sum over its alignments that were seen
    score: float  # log_prob and what the scorers add


class Decoder(abc.ABC):
    """Decodes a stream as its frames arrive: however they are cut into pieces, the tokens are the same."""

    @abc.abstractmethod
    def step(self, log_probs: Float[np.ndarray, "frames vocab"]) -> list[Token]:
        """Takes the next frames (natural logarithms) and returns the tokens that can no longer change because of them.

        Until `finish`, what steps have returned, one after the other, is the first `num_stable` of `tokens`.
        """

    @property
    @abc.abstractmethod
    def tokens(self) -> list[Token]:
        """The best hypothesis so far."""

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The labellings at hand, best first. Without a beam there is one, with the score of its tokens alone."""
        log_prob = sum(token.log_prob for token in self.tokens)
        return [Hypothesis(self.tokens, log_prob, log_prob)]

    @property
    @abc.abstractmethod
    def num_stable(self) -> int:
        """The number of tokens, from the first one on, that can no longer change, whatever follows."""

    @abc.abstractmethod
    def finish(self) -> list[Token]:
        """Ends the utterance and returns its tokens, all of them. May be called again; no `step` may follow but after
        `restart`.
        """

    @abc.abstractmethod
    def forget(self, count: int) -> None:
        """Drops the first `count` of `tokens`, all of them stable. What follows is decoded as if they were there."""

    @abc.abstractmethod
    def restart(self) -> None:
        """Begins the next utterance behind `finish`, without tokens. A symbol that lasts over the border is one token,
        of the utterance before.
        """


class GreedyDecoder(Decoder):
    """Takes the best symbol of each frame. A token is final at the first frame of its run."""

    def __init__(self):
        self._last = BLANK
        self._num_frames = 0
        self._tokens: list[Token] = []

    def step(self, log_probs: Float[np.ndarray, "frames vocab"]) -> list[Token]:
        ids = log_probs.argmax(axis=1)
        before = np.concatenate([[self._last], ids])
        frames = np.flatnonzero((ids != before[:-1]) & (ids != BLANK))
        tokens = [
            Token(int(ids[frame]), self._num_frames + int(frame), float(log_probs[frame, ids[frame]]))
            for frame in frames
        ]
        self._last = int(before[-1])
        self._num_frames += len(ids)
        self._tokens += tokens
        return tokens

    @property
    def tokens(self) -> list[Token]:
        return list(self._tokens)

    @property
    def num_stable(self) -> int:
        return len(self._tokens)

    def finish(self) -> list[Token]:
        return self.tokens

    def forget(self, count: int) -> None:
        del self._tokens[:count]

    def restart(self) -> None:
        self._tokens = []


def greedy(log_probs: Float[np.ndarray, "frames vocab"]) -> list[Token]:
    """The tokens of a whole utterance."""
    return GreedyDecoder().step(log_probs)
