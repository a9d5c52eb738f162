"""Artefacts running: each in the place of the `Engine` that recognisers use, so that all read the same windows."""

import abc
import importlib
import pathlib
from typing import Any

import numpy as np

from conformer.artefacts.formats import FORMATS, ExportError, check_packages
from conformer.artefacts.geometry import Geometry, zeros
from conformer.config import FeatureConfig
from kernels.typing import Float, Int


class Runtime(abc.ABC):
    """One stream through an artefact."""

    emulated = False  # its speed here says nothing

    def __init__(self, path: pathlib.Path, geometry: Geometry, features: FeatureConfig):
        self.geometry, self.features = geometry, features
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
        return sum(array.nbytes for array in zeros(self.geometry.state_shapes).values())

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


def load_runtimes(format: str, path: pathlib.Path, geometry: Geometry, features: FeatureConfig) -> dict[str, Runtime]:
    """The artefact in each way to run it (`Runtime.variants`).

    Raises ExportError where it is missing, or a package that runs it.
    """
    if not path.exists():
        raise ExportError(f"{path} does not exist, though its card does: export again")
    check_packages(format, FORMATS[format].interpreters)
    module = importlib.import_module(f"conformer.artefacts.{FORMATS[format].module}")
    runtime: type[Runtime] = getattr(module, FORMATS[format].runtime)
    return {suffix: runtime(path, geometry, features, **options) for suffix, options in runtime.variants().items()}
