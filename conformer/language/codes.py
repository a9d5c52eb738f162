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
        self._values[np.abs(self._values) < 1e-9 * (high - low)] = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> "Codes":
        """The nearest codes; what never happens gets the lowest. Zero stays zero: no back-off is needed there."""
        low, high = (float(function(values[values > _NEVER], initial=0.0)) for function in (np.min, np.max))
        below = int(np.clip(round(_STEPS * -low / max(high - low, 1e-9)), low < 0, _STEPS - (high > 0)))
        step = max(-low / max(below, 1), high / max(_STEPS - below, 1), 1e-9 / _STEPS)
        codes = below + np.round(np.maximum(values, low) / step)
        return cls(codes.astype(np.uint8), -below * step, (_STEPS - below) * step)

    def __getitem__(self, places: Any) -> Any:
        return self._values[self.codes[places]]
