"""Stores logarithms as bytes."""

from typing import Any

import numpy as np

_STEPS = 255
_NEVER = -50.0  # ln of what no word is as unlikely as


class Codes:
    """Numbers as bytes: value = low + step * code."""

    def __init__(self, codes: np.ndarray, low: float, high: float):
        self.codes, self.low, self.high = codes, low, high
        self._values = np.linspace(low, high, _STEPS + 1)

    @classmethod
    def of(cls, values: np.ndarray) -> "Codes":
        """The nearest codes; what never happens gets the lowest."""
        low, high = (float(function(values[values > _NEVER], initial=0.0)) for function in (np.min, np.max))
        scale = _STEPS / max(high - low, 1e-9)
        return cls(np.round((np.maximum(values, low) - low) * scale).astype(np.uint8), low, high)

    def __getitem__(self, places: Any) -> Any:
        return self._values[self.codes[places]]
