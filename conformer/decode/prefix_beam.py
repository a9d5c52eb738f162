"""CTC prefix beam search over a stream (Graves, 2012, "Supervised Sequence Labelling with Recurrent Neural Networks",
section 7.5; Hannun et al., 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
Recurrent DNNs", algorithm 1).

A prefix l, a labelling of the frames so far, carries the probability of all paths that spell it, split into those that
end in a blank, B, and those that end in its last label, L. With y_t the symbol probabilities of frame t,

    B_t(l)   = y_t(blank) (B_{t-1}(l) + L_{t-1}(l))
    L_t(l k) = y_t(k) (L_{t-1}(l k) + B_{t-1}(l) [+ L_{t-1}(l) if l does not end in k])
    score(l) = ln (B_T(l) + L_T(l)) + what the scorers (language model, hot words) say of l

and the `beam_size` prefixes of the best score survive each frame. Prefixes are nodes of a tree that shares their common
beginnings. Beside the sums, each prefix carries its single best path, which says when its tokens were emitted.
"""

import dataclasses
import heapq
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from conformer.decode.greedy import Decoder, Hypothesis, Token
from conformer.tokenizer import BLANK
from kernels.typing import Float

# Nats by which a path that lasts in its label may fall behind the same labelling's path in a blank. One further behind
# is forgotten: in a long silence, it would keep the time of the last token open.
HOPELESS = 50.0


class DecodeError(ValueError):
    """A search that cannot be set up, or frames that cannot be searched; the message says why."""


@runtime_checkable
class Scorer(Protocol):
    """Adds to the score of a labelling, token by token. States are values: a scorer can serve many streams at once.

    Attributes:
        most: no token adds more than this, in nats: what cannot reach the beam with it need not be asked about.
    """

    most: float

    @property
    def start(self) -> Any:
        """The state before the first token."""

    def step(self, state: Any, id: int) -> tuple[float, Any]:
        """Returns what appending a token adds to the score, in nats, and the state behind it."""
        ...

    def finish(self, state: Any) -> float:
        """Returns what the end of the utterance adds to the score, in nats."""
        ...


class PrefixBeamDecoder(Decoder):
    """Finds the labelling of the best score. Its memory grows with the tokens alone, its time per frame not at all.

    Args:
        beam_size: prefixes that survive a frame.
        top_k: new tokens tried at a frame, at most.
        min_log_prob: natural logarithm of the probability that a new token needs, unless it is the frame's best.
        max_delay: frames after which a token of the best prefix is final: prefixes without it leave the beam. Without
            such a limit, two spellings of an early word would share the beam until the end.
        scorers: add to the score of a prefix.

    Raises DecodeError for settings that allow no search.
    """

    def __init__(
        self,
        beam_size: int = 8,
        *,
        top_k: int = 16,
        min_log_prob: float = -5.0,
        max_delay: int = 100,
        scorers: Sequence[Scorer] = (),
    ):
        if min(beam_size, top_k, max_delay) < 1:
            raise DecodeError(f"beam_size={beam_size}, top_k={top_k} and max_delay={max_delay} must be at least 1")
        self._beam_size = beam_size
        self._max_delay = max_delay
        self._top_k = top_k
        self._min_log_prob = min_log_prob
        self._scorers = tuple(scorers)
        self._num_frames = 0
        self._begin(BLANK, blank=0.0, label=-math.inf)

    def step(self, log_probs: Float[np.ndarray, "frames vocab"]) -> list[Token]:
        """Takes the next frames. Raises DecodeError for NaN, a frame without a possible symbol, or after `finish`."""
        if self._finished:
            raise DecodeError("frames after finish(): call restart() for the next utterance")
        log_probs = log_probs.astype(np.float64)
        if np.isnan(log_probs).any():
            frame = self._num_frames + int(np.isnan(log_probs).any(axis=1).argmax())
            raise DecodeError(f"log_probs of frame {frame} hold NaN: the model or its input is broken")
        for frame in log_probs:
            self._advance(frame)
            self._decide()
            self._num_frames += 1
        return self._settle()

    @property
    def tokens(self) -> list[Token]:
        return self._stable + self._walk(self._beam[0].best[1])

    @property
    def num_stable(self) -> int:
        return len(self.tokens) if self._finished else len(self._stable)

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The labellings in the beam, best first."""
        return [
            Hypothesis(self._stable + self._walk(prefix.best[1]), prefix.log_prob, prefix.log_prob + prefix.bonus)
            for prefix in self._beam
        ]

    def finish(self) -> list[Token]:
        """Ends the utterance and returns its tokens. What scorers add at the end may change the order of the beam."""
        if not self._finished:
            self._finished = True
            for prefix in self._beam:
                prefix.bonus += sum(
                    scorer.finish(state) for scorer, state in zip(self._scorers, prefix.states, strict=True)
                )
            self._beam.sort(key=lambda prefix: prefix.log_prob + prefix.bonus, reverse=True)
        return self.tokens

    def forget(self, count: int) -> None:
        """Implements `Decoder.forget`."""
        del self._stable[:count]

    def restart(self) -> None:
        """Begins the next utterance behind the best prefix; the scorers begin anew."""
        best = self._beam[0]
        self._begin(best.id, blank=best.blank - best.log_prob, label=best.label - best.log_prob)

    def _begin(self, last: int, *, blank: float, label: float) -> None:
        """Makes the beam that of a new utterance, behind a last symbol whose run is over with ln P = `blank`."""
        self._finished = False
        self._stable: list[Token] = []
        self._last_stable = start = _Path(None, Token(last, self._num_frames - 1, 0.0), 0)  # where every path begins
        self._root = root = _Prefix(None, last, tuple(scorer.start for scorer in self._scorers), 0.0, row=0)
        root.blank = root.best_blank = blank
        root.label = root.best_label = label
        root.blank_path, root.label_path = (start if p > -math.inf else None for p in (blank, label))
        self._beam = [root]  # best first

    def _advance(self, log_probs: np.ndarray) -> None:
        """Extends the beam by one frame, [vocab]."""
        beam, ids = self._beam, self._candidates(log_probs)
        last = np.array([prefix.id for prefix in beam])
        blank = np.array([prefix.blank for prefix in beam])
        label = np.array([prefix.label for prefix in beam])
        total = np.logaddexp(blank, label)
        # A label behind itself needs a blank between them; without, both are one run.
        grown = np.where(ids == last[:, None], blank[:, None], total[:, None]) + log_probs[ids]  # [beam, ids]
        blank, stays = total + log_probs[BLANK], label + log_probs[last]

        columns = {id: column for column, id in enumerate(ids.tolist())}
        for row, prefix in enumerate(beam):
            if (parent := prefix.parent) is not None and parent.row >= 0:
                # The parent grows into a prefix that the beam has already: one labelling, one place.
                source = parent.blank if parent.id == prefix.id else total[parent.row]
                stays[row] = np.logaddexp(stays[row], source + log_probs[prefix.id])
                if (column := columns.get(prefix.id)) is not None:
                    grown[parent.row, column] = -math.inf

        bonus = np.array([prefix.bonus for prefix in beam])
        stay = np.logaddexp(blank, stays) + bonus
        scores = np.concatenate([stay, self._scores(stay, grown, bonus, ids)])
        order = np.argsort(-scores, kind="stable")[: self._beam_size]
        order = order[scores[order] > -math.inf]
        if not len(order):
            raise DecodeError(
                f"no symbol is possible at frame {self._num_frames}: log_probs must be those of a softmax"
            )

        entries = []
        for index in order.tolist():
            if index < len(beam):
                prefix = beam[index]
                entry = (float(blank[index]), float(stays[index]), *self._stay(prefix, log_probs))
            else:
                row, column = divmod(index - len(beam), len(ids))
                prefix = beam[row].child(int(ids[column]), self._scorers)
                best, path = self._grow(beam[row], prefix.id, log_probs)
                entry = (-math.inf, float(grown[row, column]), -math.inf, best, None, path)
            entries.append((prefix, entry))
        for prefix, entry in entries:
            prefix.blank, prefix.label, prefix.best_blank, prefix.best_label = entry[:4]
            prefix.blank_path, prefix.label_path = entry[4:]
        self._replace([prefix for prefix, _ in entries])

    def _candidates(self, log_probs: np.ndarray) -> np.ndarray:
        """The labels worth trying as new tokens. Blanks and repeated labels need no trial: they are always followed."""
        ids = np.arange(len(log_probs))
        if len(ids) > self._top_k:
            ids = np.argpartition(-log_probs, self._top_k)[: self._top_k]
        return ids[(ids != BLANK) & (log_probs[ids] >= min(self._min_log_prob, log_probs.max()))]

    def _scores(self, stay: np.ndarray, grown: np.ndarray, bonus: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Scores of each prefix grown by each label, [beam * ids]; -inf for some that cannot be in the beam.

        `stay` holds those of the prefixes as they are, `grown` [beam, ids] the log-probabilities of the grown ones.
        """
        bounds = (grown + bonus[:, None]).ravel()
        if not self._scorers:
            return bounds
        bounds += sum(scorer.most for scorer in self._scorers)
        scores = np.full(len(bounds), -math.inf)
        best = [-math.inf] * (self._beam_size - len(stay)) + stay.tolist()  # a heap of the beam's scores to be
        heapq.heapify(best)
        rows, columns = np.divmod(order := np.argsort(-bounds), len(ids))
        tried = zip(order.tolist(), bounds[order].tolist(), rows.tolist(), ids[columns].tolist(), strict=True)
        log_probs = grown.ravel().tolist()
        for index, bound, row, id in tried:
            if bound < best[0] or bound == -math.inf:
                break
            score = log_probs[index] + self._beam[row].extension(id, self._scorers)[0]
            scores[index] = score
            heapq.heappushpop(best, score)
        return scores

    def _stay(self, prefix: "_Prefix", log_probs: np.ndarray) -> "tuple[float, float, _Path | None, _Path | None]":
        """The best paths of a prefix that keeps its labelling: ending in a blank, ending in its last label."""
        best, path = prefix.best
        label = prefix.best_label + float(log_probs[prefix.id])
        label_path = prefix.label_path
        if prefix.parent is not None and prefix.parent.row >= 0:
            later, later_path = self._grow(prefix.parent, prefix.id, log_probs)
            if later > label:
                label, label_path = later, later_path
        blank = best + float(log_probs[BLANK])
        if label < blank - HOPELESS:
            label, label_path = -math.inf, None
        return blank, label, path, label_path

    def _grow(self, prefix: "_Prefix", id: int, log_probs: np.ndarray) -> "tuple[float, _Path | None]":
        """The best path of a prefix to which this frame adds a label."""
        best, path = (prefix.best_blank, prefix.blank_path) if id == prefix.id else prefix.best
        if path is None:
            return -math.inf, None
        log_prob = float(log_probs[id])
        return best + log_prob, _Path(path, Token(id, self._num_frames, log_prob), path.length + 1)

    def _replace(self, beam: "list[_Prefix]") -> None:
        """Makes `beam`, best first, the beam, and removes from the tree what leads to none of it any more."""
        before = self._beam
        for prefix in before:
            prefix.row = -1
        self._beam = beam
        for row, prefix in enumerate(beam):
            prefix.row = row
        for prefix in before:
            while prefix.row < 0 and not prefix.children and prefix.parent is not None:
                prefix.parent.children.pop(prefix.id, None)
                prefix = prefix.parent

    def _decide(self) -> None:
        """Drops prefixes without the best one's labels of `max_delay` ago; moves the root to where the rest part."""
        node, path = self._beam[0], self._beam[0].best[1]
        newest = self._num_frames - self._max_delay  # frame of tokens that become final
        while node.parent is not None and path is not None and path.token.frame > newest:
            node, path = node.parent, path.before
        if node is not self._root:
            self._replace([prefix for prefix in self._beam if prefix.within(node)])
        while self._root.row < 0 and len(self._root.children) == 1:
            (self._root,) = self._root.children.values()
            self._root.parent = None

    def _settle(self) -> list[Token]:
        """Cuts off, and returns, the tokens that the best paths of all prefixes have in common."""
        paths = {path for prefix in self._beam for path in (prefix.blank_path, prefix.label_path) if path is not None}
        while len(paths) > 1:
            longest = max(path.length for path in paths)
            paths = {path.before if path.length == longest and path.before else path for path in paths}
        (common,) = paths
        tokens = self._walk(common)
        self._stable += tokens
        self._last_stable = common
        common.before = None
        return tokens

    def _walk(self, path: "_Path | None") -> list[Token]:
        """The tokens of a path behind the last stable one."""
        tokens = []
        while path is not None and path is not self._last_stable:
            tokens.append(path.token)
            path = path.before
        return tokens[::-1]


@dataclasses.dataclass(slots=True, eq=False)
class _Path:
    """The last token of an alignment, and what is before it."""

    before: "_Path | None"
    token: Token
    length: int


@dataclasses.dataclass(slots=True, eq=False)
class _Prefix:
    """A labelling: a node of the tree of prefixes, with logarithms of its probabilities while it is in the beam."""

    parent: "_Prefix | None"
    id: int  # its last label
    states: tuple  # of the scorers
    bonus: float  # sum of what the scorers said
    children: "dict[int, _Prefix]" = dataclasses.field(default_factory=dict)
    extensions: dict[int, tuple[float, tuple]] = dataclasses.field(default_factory=dict)  # id -> child's bonus, states
    row: int = -1  # place in the beam, if it is there
    blank: float = -math.inf  # all paths that end in a blank
    label: float = -math.inf  # all paths that end in the last label
    best_blank: float = -math.inf  # the best path that ends in a blank
    best_label: float = -math.inf  # the best path that ends in the last label
    blank_path: _Path | None = None
    label_path: _Path | None = None

    @property
    def log_prob(self) -> float:
        return float(np.logaddexp(self.blank, self.label))

    @property
    def best(self) -> tuple[float, _Path | None]:
        """The best path."""
        if self.best_label > self.best_blank:
            return self.best_label, self.label_path
        return self.best_blank, self.blank_path

    def extension(self, id: int, scorers: tuple[Scorer, ...]) -> tuple[float, tuple]:
        """Bonus and states of this prefix and one label more."""
        if (known := self.extensions.get(id)) is None:
            steps = [scorer.step(state, id) for scorer, state in zip(scorers, self.states, strict=True)]
            known = self.bonus + sum(gain for gain, _ in steps), tuple(state for _, state in steps)
            self.extensions[id] = known
        return known

    def within(self, ancestor: "_Prefix") -> bool:
        """Returns whether this prefix begins with `ancestor`, or is it."""
        prefix: _Prefix | None = self
        while prefix is not None and prefix is not ancestor:
            prefix = prefix.parent
        return prefix is ancestor

    def child(self, id: int, scorers: tuple[Scorer, ...]) -> "_Prefix":
        """The node of this prefix and one label more."""
        if (child := self.children.get(id)) is None:
            bonus, states = self.extension(id, scorers)
            child = self.children[id] = _Prefix(self, id, states, bonus)
        return child
