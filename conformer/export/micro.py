"""TensorFlow Lite Micro, for microcontrollers: integers in, logits out, and the C sources that firmware is built with.

int16x8 has int8 weights and int16 activations, int8 has eight bits throughout. In int16x8 the batched products of
attention take and give int8 too: Ethos-U55 multiplies two activations in no other format, and would leave them to the
processor. Every part of the state has one scale on its way in and out, so that firmware copies its bytes from step to
step. The log-softmax is the host's: greedy decoding does not need it.
"""

import functools
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import interpreter as litert  # pyright: ignore[reportMissingImports]
from ai_edge_litert import schema_py_generated as schema  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer.utils import qsv_utils  # pyright: ignore[reportMissingImports]

from conformer.artefacts.geometry import Geometry, zeros
from conformer.artefacts.litert import SIGNATURE
from conformer.artefacts.micro import MASK_VALUES, TfliteMicro
from conformer.export import c_sources
from conformer.export.formats import Interface, Task
from conformer.export.litert import convert
from conformer.export.quiet import quiet
from conformer.export.step import describe, flat_step

OPERATION = qtyping.TFLOperationName
ACTIVATION_BITS = {  # of numerics; a later operation's prevail
    "int16x8": {OPERATION.ALL_SUPPORTED: 16, OPERATION.BATCH_MATMUL: 8},
    "int8": {OPERATION.ALL_SUPPORTED: 8},
}


def export(task: Task) -> Interface:
    """Writes the flatbuffer, NAME.cc with it as an array, and NAME.h with what the host needs."""
    flatbuffer = convert(flat_step(task.model, task.geometry, lambda logits: logits), task.geometry, "logits")
    if task.numerics in ACTIVATION_BITS:
        flatbuffer = _quantise(flatbuffer, task)
    task.path.write_bytes(flatbuffer)
    artefact = TfliteMicro(task.path, task.geometry, task.config.features)
    tensors = artefact.tensors
    c_sources.write(
        task.path, flatbuffer, task.config.features, task.geometry, tensors, artefact.arena_bytes, artefact.mask
    )
    names = describe(task.geometry, "logits")
    return Interface(*({name: [tensors[name].dtype, shape] for name, (_, shape) in side.items()} for side in names))


def _quantise(flatbuffer: bytes, task: Task) -> bytes:
    """Scales from the extremes of every tensor over streams of speech, the state carried from chunk to chunk."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = pathlib.Path(folder, "float32.tflite")
        path.write_bytes(flatbuffer)
        recipe = recipe_manager.RecipeManager()
        for operation, bits in ACTIVATION_BITS[task.numerics].items():
            recipe.add_static_config(".*", operation, activation_num_bits=bits, weight_num_bits=8)
        engine = quantizer.Quantizer(str(path), recipe.get_quantization_recipe())
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
    """Yields the inputs of the float32 step over the streams of the calibration, the state carried along."""
    geometry = task.geometry
    run = litert.Interpreter(str(path)).get_signature_runner(SIGNATURE)
    for windows in task.calibration:
        state = zeros(geometry.state_shapes)
        for index, window in enumerate(windows):
            valid = geometry.valid_keys(index * geometry.chunk_size, geometry.window_frames)
            mask = np.where(valid, 0, MASK_VALUES[task.numerics]).astype(np.float32)
            inputs = {"window": window, "mask": mask} | state
            yield inputs
            results = run(**inputs)
            state = {name: results[f"next_{name}"] for name in state}


def _tie_state(ranges: dict[str, Any], path: pathlib.Path, geometry: Geometry) -> None:
    """Gives each part of the state the same range on its way in and out, and where old and new are joined.

    The way out is a slice of what is joined, and has its scale; not every value that is joined is kept.
    """
    runner = litert.Interpreter(str(path)).get_signature_runner(SIGNATURE)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    producers = {output: operator for operator in graph.operators for output in operator.outputs}
    for name in geometry.state_shapes:
        joined = producers[outputs[f"next_{name}"]["index"]].inputs[0]
        names = [inputs[name]["name"], outputs[f"next_{name}"]["name"], graph.tensors[joined].name.decode()]
        union = functools.reduce(qsv_utils.min_max_update, (ranges[tensor] for tensor in names))
        ranges |= dict.fromkeys(names, union)
