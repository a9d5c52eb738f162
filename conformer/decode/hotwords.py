"""Hot words: phrases (names, commands) that a prefix beam search should prefer.

The phrases' tokens form the automaton of Aho and Corasick (1975, "Efficient string matching: an aid to bibliographic
search", Communications of the ACM). Each token that leads deeper into a phrase adds the bonus at once, so that the beam
keeps the prefix; when the phrase is not completed, all that it was given is taken back. A phrase starts where a word
starts and is complete where a word ends: "art" helps neither "party" nor "artist".
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from conformer.pronunciation import PronunciationError
from conformer.tokenizer import SPACE_SYMBOL, Tokenizer, TokenizerError


class HotWordsError(ValueError):
    """A phrase that cannot be looked for; the message names it and the remedy."""


class HotWords:
    """Scorer of `PrefixBeamDecoder` that adds `bonus_per_token`, in nats, for each token of a phrase.

    No token is rewarded twice, also where phrases overlap. Raises HotWordsError for a phrase that is empty or has
    characters that the tokenizer has not, and for a bonus that is not above 0.
    """

    def __init__(self, phrases: Iterable[str], tokenizer: Tokenizer, bonus_per_token: float):
        if not bonus_per_token > 0:
            raise HotWordsError(f"bonus_per_token={bonus_per_token} must be above 0")
        self._bonus = self.most = bonus_per_token
        self._opens = [symbol.startswith(SPACE_SYMBOL) for symbol in tokenizer.symbols]
        self._space_ends = [symbol.endswith(SPACE_SYMBOL) for symbol in tokenizer.symbols]
        self._root = _Node(0)
        for phrase in phrases:
            self._add(phrase, tokenizer)
        self._link()
        self.start = _State(self._root, 0, True)

    def step(self, state: "_State", id: int) -> tuple[float, "_State"]:
        """Implements `Scorer.step`."""
        node, paid, at_start = self._complete(state) if self._opens[id] else state
        held = _held(node, paid)
        while id not in node.children and node.fallback is not None:
            node = node.fallback
            paid &= (1 << node.depth) - 1
        if (self._opens[id] or at_start or node is not self._root) and id in node.children:
            node, paid = node.children[id], paid << 1
        return self._bonus * (_held(node, paid) - held), _State(node, paid, self._space_ends[id])

    def finish(self, state: "_State") -> float:
        """Implements `Scorer.finish`."""
        node, paid, _ = self._complete(state)
        return -self._bonus * _held(node, paid)

    def _complete(self, state: "_State") -> "_State":
        """Ends a word: the bonus of the longest phrase that ends with it can no longer be taken back."""
        return state._replace(paid=state.paid | ((1 << state.node.completes) - 1))

    def _add(self, phrase: str, tokenizer: Tokenizer) -> None:
        try:
            ids = tokenizer.encode(tokenizer.normalise(phrase))
        except (TokenizerError, PronunciationError) as error:
            raise HotWordsError(f"hot words {phrase!r} cannot be spelled: {error}") from None
        if not ids:
            raise HotWordsError(f"hot words {phrase!r} hold no word: remove them")
        node = self._root
        for id in ids:
            node = node.children.setdefault(id, _Node(node.depth + 1))
        node.completes = node.depth

    def _link(self) -> None:
        """Finds, breadth first, each node's fallback."""
        queue = deque((self._root, id, child, False) for id, child in self._root.children.items())
        while queue:
            parent, id, node, at_start = queue.popleft()
            fallback = parent.fallback
            while fallback is not None and id not in fallback.children:
                fallback = fallback.fallback
            # Inside of a word no other phrase can start.
            if fallback is None or (fallback is self._root and not (self._opens[id] or at_start)):
                node.fallback = self._root
            else:
                node.fallback = fallback.children[id]
            node.completes = node.completes or node.fallback.completes
            queue.extend((node, next_id, child, self._space_ends[id]) for next_id, child in node.children.items())


class _Node:
    """A beginning of phrases: the tokens on the way from the root."""

    __slots__ = ("children", "completes", "depth", "fallback")

    def __init__(self, depth: int):
        self.depth = depth
        self.children: dict[int, _Node] = {}
        self.completes = 0  # tokens of the longest phrase that ends here
        self.fallback: _Node | None = None  # the longest proper ending of these tokens that also begins a phrase


class _State(NamedTuple):
    node: _Node
    paid: int  # bit i: the bonus of the node's i-th last token is for good
    at_start: bool  # whether the next token starts a word, even without `▁`


def _held(node: _Node, paid: int) -> int:
    """Tokens whose bonus would be taken back."""
    return node.depth - paid.bit_count()
