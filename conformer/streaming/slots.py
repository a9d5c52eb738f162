"""Many streams through a stepper of one: each has a state of its own, and takes a step alone."""

import copy

import numpy as np

from conformer.streaming.stepper import Stepper
from kernels.typing import Bool, Float, Int


class Slots:
    """A `Stepper` of many streams, made of one that steps one stream.

    A step costs as much as there are streams with a chunk, where a compiled batch (`Engine` with a `batch_size`) costs
    the same for any number: streams that begin at different times seldom have their chunks together.

    Args:
        stepper: is copied: weights and compiled code are shared, a state is replaced by each step, never changed.
        batch_size: streams.
    """

    def __init__(self, stepper: Stepper, batch_size: int):
        self.framing, self.batch_size = stepper.framing, batch_size
        self._steppers = [copy.copy(stepper) for _ in range(batch_size)]
        self.reset()

    def __call__(
        self,
        windows: Float[np.ndarray, "batch window mel"],
        num_frames: Int[np.ndarray, " batch"],
        fresh: Bool[np.ndarray, " batch"] | None = None,
    ) -> Float[np.ndarray, "batch frames vocab"]:
        """See `Stepper`."""
        found = {}
        for slot in np.flatnonzero(num_frames):
            one = slice(slot, slot + 1)
            found[slot] = self._steppers[slot](windows[one], num_frames[one], None if fresh is None else fresh[one])
        if len(found) == 1 and self.batch_size == 1:
            return found[0]
        first = next(iter(found.values()))
        log_probs = np.zeros((self.batch_size, *first.shape[1:]), first.dtype)
        for slot, rows in found.items():
            log_probs[slot] = rows[0]
        return log_probs

    def reset(self) -> None:
        """See `Stepper`."""
        for stepper in self._steppers:
            stepper.reset()

    def warm_up(self) -> None:
        """See `Stepper`."""
        self._steppers[0].warm_up()

    @property
    def state_bytes(self) -> int:
        """See `Stepper`."""
        return self._steppers[0].state_bytes
