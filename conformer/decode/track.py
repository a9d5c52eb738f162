"""Keeps values that come frame by frame, and drops old ones."""

import numpy as np


class Track:
    """The values of a stream's frames from `start` on."""

    def __init__(self):
        self.start = 0
        self._pieces: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Takes those of the next frames."""
        self._pieces.append(values)

    def forget(self, frame: int) -> None:
        """Drops those before a frame."""
        values = self.values[max(frame - self.start, 0) :].copy()  # a view would keep all of them
        self.start, self._pieces = max(frame, self.start), [values]

    @property
    def values(self) -> np.ndarray:
        """All of them in one array."""
        if len(self._pieces) != 1:
            self._pieces = [np.concatenate(self._pieces)] if self._pieces else [np.zeros(0)]
        return self._pieces[0]
