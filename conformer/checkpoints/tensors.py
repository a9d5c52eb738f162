"""The named tensors of a checkpoint: each is taken once, and what is missing, left over or misshapen is listed."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

_SHOWN = 12  # names that a message lists


class ConversionError(ValueError):
    """A checkpoint that cannot be imported; the message names what stands in the way, and the remedy."""


class Stored(NamedTuple):
    """A tensor that is still on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors:
    """Hands tensors over as float32, and remembers which.

    Args:
        origin: how messages name the file.
        ignored: beginnings of names that recognition does not need.
    """

    def __init__(self, origin: str, stored: Mapping[str, Stored], ignored: Sequence[str] = ()):
        self._origin, self._stored, self._ignored = origin, stored, tuple(ignored)
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []
        self._unusable: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def has_any(self, prefix: str) -> bool:
        """Returns whether the name of any tensor begins with `prefix`."""
        return any(name.startswith(prefix) for name in self._stored)

    def miss(self, name: str) -> None:
        """Notes something that is not there, which `finish` will report."""
        self._missing.append(name)

    def dtype(self, name: str) -> np.dtype:
        """Returns the type that a tensor is stored in."""
        return self._stored[name].dtype

    def take(self, name: str, *shape: int) -> np.ndarray:
        """The tensor of that name and shape; zeros where there is none, which `finish` will report."""
        if name not in self._stored:
            self._missing.append(name)
            return np.zeros(shape, np.float32)
        self._taken.add(name)
        if self._stored[name].shape != shape:
            self._misshapen.append(f"{name} is {list(self._stored[name].shape)} and not {list(shape)}")
            return np.zeros(shape, np.float32)
        dtype = self.dtype(name)
        if not jnp.issubdtype(dtype, np.floating):
            self._unusable.append(f"{name} is {dtype}")
            return np.zeros(shape, np.float32)
        array = np.asarray(self._stored[name].read(), np.float32)
        if not np.isfinite(array).all():
            self._unusable.append(f"{name} is not finite")
        return array

    def finish(self) -> None:
        """Raises ConversionError for tensors that are missing, left over or of the wrong shape, or not finite."""
        left = [
            name
            for name in self._stored
            if name not in self._taken
            and not name.startswith(self._ignored)
            and not name.endswith("num_batches_tracked")
        ]
        found = {"missing": self._missing, "left over": left, "of the wrong shape": self._misshapen}
        found["not of finite floating-point numbers"] = self._unusable
        listed = [f"{kind}: {_listed(names)}" for kind, names in found.items() if names]
        if listed:
            raise ConversionError(
                f"{self._origin}: the tensors are not those of the model that its configuration describes ("
                + "; ".join(listed)
                + "): nothing was written"
            )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
