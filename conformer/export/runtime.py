"""Artefacts running: each in the place of the `Engine` that recognisers use, so that all read the same windows."""

import abc
import contextlib
import io
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from conformer.export.step import Geometry
from kernels.typing import Float, Int


class Runtime(abc.ABC):
    """One stream through an artefact."""

    emulated = False  # its speed here says nothing

    def __init__(self, path: pathlib.Path, geometry: Geometry):
        self.geometry = geometry
        self._frames_seen = 0

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Ways to run the same artefact: what is added to its name, and the options of the constructor."""
        return {"": {}}

    def __call__(
        self, windows: Float[np.ndarray, "1 window mel"], num_frames: Int[np.ndarray, " 1"]
    ) -> Float[np.ndarray, "1 frames vocab"]:
        """Log-probabilities of the next chunk, of which `num_frames` are valid (see `Engine`)."""
        valid = self.geometry.valid_keys(self._frames_seen, int(num_frames[0]))
        self._frames_seen += int(num_frames[0])
        return self._step(windows[0], valid)[None]

    def reset(self) -> None:
        """Begins a new stream."""
        self._frames_seen = 0
        self._reset()

    @property
    def state_bytes(self) -> int:
        """Bytes of state between chunks."""
        return sum(array.nbytes for block in self.geometry.initial_state() for array in block)

    @property
    def arena_bytes(self) -> int | None:
        """Working memory that the interpreter asks for, where it says so."""
        return None

    @property
    def layouts(self) -> dict[str, int]:
        """How many results of operations have each layout, where that decides on speed."""
        return {}

    @abc.abstractmethod
    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray: ...

    @abc.abstractmethod
    def _reset(self) -> None: ...


def log_softmax(logits: Float[np.ndarray, "frames vocab"]) -> Float[np.ndarray, "frames vocab"]:
    """What a host computes of an artefact that ends in logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what converters print, and warnings of theirs that nobody can act on."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        warnings.simplefilter("ignore", ResourceWarning)  # coremltools leaves a folder to the garbage collector
        yield
