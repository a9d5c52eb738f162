"""TensorFlow Lite Micro: integers in, logits out; the host quantises, keeps the state and takes the log-softmax."""

import os
import pathlib
import re
import tempfile
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import interpreter as litert  # pyright: ignore[reportMissingImports]
from tflite_micro.python.tflite_micro import runtime as micro  # pyright: ignore[reportMissingImports]

from conformer.artefacts.formats import ExportError
from conformer.artefacts.geometry import MASKED
from conformer.artefacts.litert import SIGNATURE
from conformer.artefacts.runtime import Runtime
from kernels.typing import Float

# What a key that is not valid adds to its scores. In eight bits a larger one would take resolution from the others.
MASK_VALUES = {"float32": MASKED, "int16x8": -20.0, "int8": -10.0}


class Tensor(NamedTuple):
    """An input or output: real value = scale (integer - zero_point); scale 0 = float32 as it is."""

    dtype: str
    scale: float
    zero_point: int
    position: int  # among the inputs or outputs

    def quantise(self, x: np.ndarray) -> np.ndarray:
        """Quantises x to the nearest integer, within the range of the format."""
        if self.scale == 0:
            return np.ascontiguousarray(x, np.float32)
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(x / self.scale) + self.zero_point, limits.min, limits.max).astype(self.dtype)

    def dequantise(self, x: np.ndarray) -> np.ndarray:
        """The real values."""
        return x if self.scale == 0 else (x.astype(np.float32) - self.zero_point) * np.float32(self.scale)


class TfliteMicro(Runtime):
    """The interpreter that microcontrollers run, with reference kernels."""

    def _load(self, path: pathlib.Path) -> None:
        flatbuffer = path.read_bytes()
        self._interpreter = micro.Interpreter.from_bytes(flatbuffer)
        self.tensors = _read_tensors(flatbuffer)
        for name in self.geometry.state_shapes:
            if self.tensors[name][:3] != self.tensors[f"next_{name}"][:3]:
                raise ExportError(f"{path}: {name} has another scale on its way out than in: export again")
        kind = {"float32": "float32", "int16": "int16x8", "int8": "int8"}[self.tensors["window"].dtype]
        self.mask = MASK_VALUES[kind]
        self._arena: int | None = None

    @property
    def arena_bytes(self) -> int:
        """The working memory that the interpreter's own recording allocator counts after a step."""
        if self._arena is None:
            self.warm_up()
            self._arena = _print_allocations(self._interpreter)
        return self._arena

    def _initial_state(self) -> dict[str, np.ndarray]:
        return {name: self.tensors[name].quantise(array) for name, array in super()._initial_state().items()}

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        mask = self.tensors["mask"].quantise(np.where(valid, 0, self.mask))
        inputs = {"window": self.tensors["window"].quantise(window), "mask": mask} | self._state
        for name, array in inputs.items():
            self._interpreter.set_input(array, self.tensors[name].position)
        self._interpreter.invoke()
        self._state = {
            name: self._interpreter.get_output(self.tensors[f"next_{name}"].position) for name in self._state
        }
        logits = self.tensors["logits"]
        return _log_softmax(logits.dequantise(self._interpreter.get_output(logits.position)))


def _log_softmax(logits: Float[np.ndarray, "frames vocab"]) -> Float[np.ndarray, "frames vocab"]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _read_tensors(flatbuffer: bytes) -> dict[str, Tensor]:
    """Name -> format and place of each input and output."""
    interpreter = litert.Interpreter(model_content=flatbuffer)
    runner = interpreter.get_signature_runner(SIGNATURE)
    tensors = {}
    for names, details in (
        (runner.get_input_details(), interpreter.get_input_details()),
        (runner.get_output_details(), interpreter.get_output_details()),
    ):
        positions = {detail["index"]: position for position, detail in enumerate(details)}
        for name, detail in names.items():
            scale, zero_point = detail["quantization"]
            tensors[name] = Tensor(
                np.dtype(detail["dtype"]).name, float(scale), int(zero_point), positions[detail["index"]]
            )
    return tensors


def _print_allocations(interpreter: Any) -> int:
    """Bytes of arena, from what the interpreter writes to standard error."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            interpreter.print_allocations()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        file.seek(0)
        text = file.read().decode()
    if (found := re.search(r"Arena allocation total (\d+) bytes", text)) is None:
        raise ExportError(f"TensorFlow Lite Micro printed no arena size: {text[:200]!r}")
    return int(found[1])
