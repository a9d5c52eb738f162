"""TensorFlow Lite Micro, for microcontrollers: integers in, logits out, and the C sources that firmware is built with.

int16x8 has int8 weights and int16 activations, int8 has eight bits throughout. Every part of the state has one scale on
its way in and out, so that firmware copies its bytes from step to step. The log-softmax is the host's: greedy decoding
does not need it.
"""

import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import flatbuffers
import jax
import numpy as np
from ai_edge_litert import interpreter as litert  # pyright: ignore[reportMissingImports]
from ai_edge_litert import schema_py_generated as schema  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer import calibrator, quantizer, recipe  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer.utils import qsv_utils  # pyright: ignore[reportMissingImports]
from tflite_micro.python.tflite_micro import runtime as micro  # pyright: ignore[reportMissingImports]

from conformer.export import c_sources
from conformer.export.formats import ExportError, Interface, Task
from conformer.export.litert import SIGNATURE, convert
from conformer.export.runtime import Runtime, log_softmax, quiet
from conformer.export.state import MASKED, describe, flat_step, tensor_names
from conformer.export.step import Geometry

# What a key that is not valid adds to its scores. In eight bits a larger one would take resolution from the others.
MASK_VALUES = {"float32": MASKED, "int16x8": -20.0, "int8": -10.0}
RECIPES = {"int16x8": recipe.static_wi8_ai16, "int8": recipe.static_wi8_ai8}


def export(task: Task) -> Interface:
    """Writes the flatbuffer, NAME.cc with it as an array, and NAME.h with what the host needs."""
    flatbuffer = convert(flat_step(task.model, task.geometry, lambda logits: logits), task.geometry, "logits")
    if task.numerics in RECIPES:
        flatbuffer = _quantise(flatbuffer, task)
    task.path.write_bytes(flatbuffer)
    artefact = TfliteMicro(task.path, task.geometry)
    tensors = artefact.tensors
    c_sources.write(
        task.path, flatbuffer, task.config.features, task.geometry, tensors, artefact.arena_bytes, artefact.mask
    )
    names = describe(task.geometry, "logits")
    return Interface(*({name: [tensors[name].dtype, shape] for name, (_, shape) in side.items()} for side in names))


class TfliteMicro(Runtime):
    """The interpreter that microcontrollers run, with reference kernels."""

    def __init__(self, path: pathlib.Path, geometry: Geometry):
        super().__init__(path, geometry)
        flatbuffer = path.read_bytes()
        self._interpreter = micro.Interpreter.from_bytes(flatbuffer)
        self.tensors = _read_tensors(flatbuffer, geometry)
        self._names = tensor_names(geometry)
        for name in self._names:
            if self.tensors[name][:3] != self.tensors[f"next_{name}"][:3]:
                raise ExportError(f"{path}: {name} has another scale on its way out than in: export again")
        kind = {"float32": "float32", "int16": "int16x8", "int8": "int8"}[self.tensors["window"].dtype]
        self.mask = MASK_VALUES[kind]
        self._arena: int | None = None
        self._reset()

    @property
    def state_bytes(self) -> int:
        return sum(array.nbytes for array in self._state)

    @property
    def arena_bytes(self) -> int:
        """As the interpreter's own recording allocator counts after a step."""
        if self._arena is None:
            self._step(
                np.zeros((self.geometry.window, self.geometry.num_mel_bins), np.float32), self.geometry.valid_keys(0, 1)
            )
            self._arena = _print_allocations(self._interpreter)
            self._reset()
        return self._arena

    def _reset(self) -> None:
        arrays = zip(self._names, jax.tree.leaves(self.geometry.initial_state()), strict=True)
        self._state = [self.tensors[name].quantise(array) for name, array in arrays]

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        mask = self.tensors["mask"].quantise(np.where(valid, 0, self.mask))
        inputs = [self.tensors["window"].quantise(window), mask, *self._state]
        for name, array in zip(["window", "mask", *self._names], inputs, strict=True):
            self._interpreter.set_input(array, self.tensors[name].position)
        self._interpreter.invoke()
        self._state = [self._interpreter.get_output(self.tensors[f"next_{name}"].position) for name in self._names]
        logits = self.tensors["logits"]
        return log_softmax(logits.dequantise(self._interpreter.get_output(logits.position)))


def _read_tensors(flatbuffer: bytes, geometry: Geometry) -> dict[str, c_sources.Tensor]:
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
            tensors[name] = c_sources.Tensor(
                np.dtype(detail["dtype"]).name, float(scale), int(zero_point), positions[detail["index"]]
            )
    return tensors


def _quantise(flatbuffer: bytes, task: Task) -> bytes:
    """Scales from the extremes of every tensor over streams of speech, the state carried from chunk to chunk."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = pathlib.Path(folder, "float32.tflite")
        path.write_bytes(flatbuffer)
        engine = quantizer.Quantizer(str(path), RECIPES[task.numerics]())
        measured = calibrator.Calibrator(str(path), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        data = {SIGNATURE: list(_chained_inputs(path, task))}
        measured.calibrate(data, engine._recipe_manager)
        ranges = measured.get_model_qsvs()
        _tie_state(ranges, path, task.geometry)
        return _inline_buffers(bytes(engine.quantize(ranges).quantized_model or b""))


def _inline_buffers(flatbuffer: bytes) -> bytes:
    """Moves constants into the flatbuffer that the quantiser put behind it, where TensorFlow Lite Micro reads none."""
    model: Any = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    for buffer in model.buffers:
        if buffer.size:
            buffer.data = np.frombuffer(flatbuffer, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    builder: Any = flatbuffers.Builder(len(flatbuffer))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _chained_inputs(path: pathlib.Path, task: Task) -> Iterator[dict[str, np.ndarray]]:
    """What the float32 step is fed over the streams of the calibration."""
    geometry, names = task.geometry, tensor_names(task.geometry)
    run = litert.Interpreter(str(path)).get_signature_runner(SIGNATURE)
    for windows in task.calibration:
        state = dict(zip(names, jax.tree.leaves(geometry.initial_state()), strict=True))
        for index, window in enumerate(windows):
            valid = geometry.valid_keys(index * geometry.chunk_size, geometry.chunk_size)
            mask = np.where(valid, 0, MASK_VALUES[task.numerics]).astype(np.float32)
            inputs = {"window": window, "mask": mask} | state
            yield inputs
            results = run(**inputs)
            state = {name: results[f"next_{name}"] for name in names}


def _tie_state(ranges: dict[str, Any], path: pathlib.Path, geometry: Geometry) -> None:
    """Gives each part of the state the same range on its way in and out, and where old and new are joined.

    The way out is a slice of what is joined, and has its scale; not every value that is joined is kept.
    """
    runner = litert.Interpreter(str(path)).get_signature_runner(SIGNATURE)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    producers = {output: operator for operator in graph.operators for output in operator.outputs}
    for name in tensor_names(geometry):
        joined = producers[outputs[f"next_{name}"]["index"]].inputs[0]
        names = [inputs[name]["name"], outputs[f"next_{name}"]["name"], graph.tensors[joined].name.decode()]
        union = functools.reduce(qsv_utils.min_max_update, (ranges[tensor] for tensor in names))
        ranges |= dict.fromkeys(names, union)


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
