"""The base class of everything that runs artefacts: each is a `Stepper` of one stream."""

import abc
import pathlib
from typing import Any

import numpy as np

from conformer.artefacts.geometry import Geometry, zeros
from conformer.config import FeatureConfig
from kernels.typing import Bool, Float, Int


class Runtime(abc.ABC):
    """A `Stepper` of one stream through an artefact.

    Args:
        options: one of `variants`.
    """

    batch_size = 1
    emulated = False  # its speed here says nothing

    def __init__(self, path: pathlib.Path, geometry: Geometry, features: FeatureConfig, **options: Any):
        self.geometry, self.framing = geometry, geometry.framing(features)
        self._load(path, **options)
        self.reset()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Ways to run the same artefact: what is added to its name, and the options of the constructor."""
        return {"": {}}

    def __call__(
        self,
        windows: Float[np.ndarray, "1 window mel"],
        num_frames: Int[np.ndarray, " 1"],
        fresh: Bool[np.ndarray, " 1"] | None = None,
    ) -> Float[np.ndarray, "1 frames vocab"]:
        """See `Stepper`."""
        if fresh is not None and fresh[0]:
            self.reset()
        if self.geometry.whole:
            return self._whole(self._whole_inputs(windows[0], int(num_frames[0])))[None]
        valid = self.geometry.valid_keys(self._frames_seen, int(num_frames[0]))
        log_probs = self._step(windows[0], valid)
        self._frames_seen += min(int(num_frames[0]), self.geometry.chunk_size)
        return log_probs[None]

    def reset(self) -> None:
        """See `Stepper`."""
        self._frames_seen, self._state = 0, self._initial_state()

    def warm_up(self) -> None:
        """See `Stepper`."""
        shape = (1, self.geometry.window, self.geometry.num_mel_bins)
        self(np.zeros(shape, np.float32), np.ones(1, np.int32))
        self.reset()

    @property
    def state_bytes(self) -> int:
        """See `Stepper`."""
        return sum(array.nbytes for array in self._state.values())

    @property
    def arena_bytes(self) -> int | None:
        """Working memory that the interpreter asks for, where it says so."""
        return None

    @property
    def layouts(self) -> dict[str, int]:
        """The number of results of operations in each layout, where speed depends on layouts; else empty."""
        return {}

    def _whole_inputs(self, window: np.ndarray, num_frames: int) -> dict[str, np.ndarray]:
        """Returns the inputs of `Geometry.input_shapes` for a whole recording of `num_frames` encoder frames."""
        first, end = self.framing.lengths.lead, self.framing.end(window, num_frames)
        places, frames = np.arange(len(window)), np.arange(self.geometry.chunk_size)
        heard = (places >= first) & (places < end)
        values = {"window": window, "heard": heard[:, None], "inside": (frames < num_frames)[:, None]}
        return {name: values[name].astype(np.float32) for name in self.geometry.input_shapes}

    def _initial_state(self) -> dict[str, np.ndarray]:
        return zeros(self.geometry.state_shapes)

    @abc.abstractmethod
    def _load(self, path: pathlib.Path, **options: Any) -> None: ...

    @abc.abstractmethod
    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Log-probabilities of a chunk, given which keys are valid; replaces the state."""

    def _whole(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Log-probabilities of a whole recording."""
        raise NotImplementedError
