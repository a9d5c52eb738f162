"""The configuration of a checkpoint: every key is read, known not to matter, or refused by name."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from conformer.checkpoints.tensors import ConversionError

TRAINING = ("dropout", "stochastic_depth", "layerdrop", "gradient_checkpointing", "initializer")  # parts of names


class Options:
    """A section of a configuration.

    Args:
        origin: the file, as messages name it.
        section: its name in the file.
    """

    def __init__(self, origin: str, section: str, values: Any):
        if not isinstance(values, Mapping):
            raise ConversionError(f"{origin}: {section} is no table of options: restore the file")
        self._where, self._values, self._read = f"{origin}: {section}", dict(values), set[str]()

    def get(self, key: str, default: Any, null: Any = None) -> Any:
        """Returns a value of the type of `default`; `default` for a missing key, and `null`, if given, for null."""
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            return null if null is not None and key in self._values else default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, float) and isinstance(value, str):  # such as 1e-5, which YAML 1.1 takes for text
            with contextlib.suppress(ValueError):
                value = float(value)
        if default is not None and not isinstance(value, type(default)):
            raise ConversionError(f"{self._where}.{key}={value!r} is no {type(default).__name__}: restore the file")
        return value

    def need(self, key: str, default: int | None = None) -> int:
        """Returns a whole number of at least 1; `default`, if there is one, for a missing key."""
        self._read.add(key)
        value = self._values.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ConversionError(f"{self._where}.{key}={value!r} must be a whole number of at least 1")
        return value

    def choose[T](self, key: str, default: T, supported: Mapping[Any, T] | Sequence[Any]) -> Any:
        """Returns what a value stands for; null stands for an empty `default`, such as False.

        Raises ConversionError for a value that is not supported.
        """
        self._read.add(key)
        value = self._values.get(key, default)
        known = list(supported)
        value = default if value is None and None not in known and not default else value
        if value not in known:
            raise ConversionError(
                f"{self._where}.{key}={value!r} is not supported, only {', '.join(map(repr, known))}: "
                "docs/checkpoints.md lists what is"
            )
        return supported[value] if isinstance(supported, Mapping) else value

    def skip(self, *keys: str) -> None:
        """Marks keys as known: they do not change what is recognised."""
        self._read |= set(keys)

    def finish(self) -> None:
        """Raises ConversionError for a key that nobody knows: it might change the model."""
        unknown = [key for key in self._values if key not in self._read and not any(part in key for part in TRAINING)]
        if unknown:
            raise ConversionError(
                f"{self._where}: {', '.join(unknown)} is not known here: docs/checkpoints.md lists what is supported"
            )
