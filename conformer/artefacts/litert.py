"""LiteRT, by a signature with an input and an output for each part of the state (`Geometry.state_shapes`)."""

import pathlib
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert  # pyright: ignore[reportMissingImports]

from conformer.artefacts.geometry import MASKED
from conformer.artefacts.runtime import Runtime

SIGNATURE = "serving_default"


class LiteRt(Runtime):
    """LiteRT's interpreter on one thread, with XNNPACK or with the built-in kernels alone."""

    def _load(self, path: pathlib.Path, *, xnnpack: bool = True) -> None:
        resolver = litert.OpResolverType.AUTO if xnnpack else litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = litert.Interpreter(str(path), num_threads=1, experimental_op_resolver_type=resolver)
        self._run = interpreter.get_signature_runner(SIGNATURE)

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"": {}, " without XNNPACK": {"xnnpack": False}}

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        results = self._run(window=window, mask=np.where(valid, 0, MASKED).astype(np.float32), **self._state)
        self._state = {name: results[f"next_{name}"] for name in self._state}
        return results["log_probs"]

    def _whole(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._run(**inputs)["log_probs"]
