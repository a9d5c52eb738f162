"""Splits for a source that names none: dev and test are drawn, and are the same whenever it is read."""

import collections
import functools
import hashlib

HELD_OUT = 0.1  # share of dev, and of test, about
_LEAST_TRAIN = 0.25  # share of the utterances that must be left to train on
_FEWEST = 3  # speakers, or utterances, that make three splits


def hash_of(name: str) -> int:
    """64 bits of a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class Draw:
    """Draws splits: it takes all utterances of a source, and then gives the split of each.

    Whole speakers are drawn, so that none is heard in two splits. Where an utterance has no speaker, or few speakers
    would leave too little to train on, single utterances are drawn by their ids. Where any utterance names a split,
    nothing is drawn, and utterances that name none belong to "train". Memory grows with the number of speakers alone.

    Attributes:
        named: whether any utterance names a split.
    """

    def __init__(self):
        self._ids, self.named = _Names(), False
        self._speakers: collections.Counter[str] = collections.Counter()

    def add(self, id: str, speaker: str, split: str) -> None:
        """Takes one more utterance of the source, with the split that it names, or ""."""
        self.named |= split != ""
        self._ids.add(id)
        self._speakers[speaker] += 1

    def split_of(self, id: str, speaker: str, split: str) -> str:
        """The split of an utterance that was added."""
        if split or self.named:
            return split or "train"
        return self._speaker_names.split_of(speaker) if self.by_speaker else self._ids.split_of(id)

    @functools.cached_property
    def by_speaker(self) -> bool:
        """True where whole speakers are drawn, False where single utterances are."""
        if "" in self._speakers:
            return False
        left = [n for name, n in self._speakers.items() if self._speaker_names.split_of(name) == "train"]
        return len(self._speakers) >= _FEWEST and sum(left) >= _LEAST_TRAIN * self._speakers.total()

    @functools.cached_property
    def _speaker_names(self) -> "_Names":
        names = _Names()
        for speaker in self._speakers:
            names.add(speaker)
        return names


class _Names:
    """Splits names by their hashes: low ones are of "dev", high ones of "test", at least one each.

    Names that are added later thus move few others to another split.
    """

    def __init__(self):
        self._lowest, self._highest, self._count = 1.0, 0.0, 0

    def add(self, name: str) -> None:
        place = hash_of(name) / 2**64
        self._lowest, self._highest = min(self._lowest, place), max(self._highest, place)
        self._count += 1

    def split_of(self, name: str) -> str:
        place = hash_of(name) / 2**64
        if self._count < _FEWEST:
            return "train"
        if place <= max(self._lowest, HELD_OUT):
            return "dev"
        return "test" if place >= min(self._highest, 1 - HELD_OUT) else "train"
