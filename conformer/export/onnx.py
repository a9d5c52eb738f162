"""ONNX, with the interface of WeNet's CTC models: what sherpa-onnx's streaming clients load, and any ONNX Runtime.

The interface is that of `conformer.artefacts.onnx`.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]
from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]
from onnx.reference import ReferenceEvaluator  # pyright: ignore[reportMissingImports]
from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16  # pyright: ignore[reportMissingImports]
from onnxruntime.transformers.onnx_model import OnnxModel  # pyright: ignore[reportMissingImports]

from conformer.artefacts.geometry import Geometry
from conformer.artefacts.onnx import INPUTS, OUTPUTS, OnnxRuntime, cache_shapes, mask_shape
from conformer.export.formats import Interface, Task, not_for_sherpa
from conformer.export.step import LAYOUT, LAYOUTS, flat_step, key_positions, lay_out, specifications
from conformer.model import ConformerCTC
from conformer.model.layouts.constant import Constant
from conformer.model.layouts.layout import Past

OPSET = 18  # below it, ReduceMean as jax2onnx 0.17.1 writes it does not pass ONNX's checker
IR_VERSION = 8  # that of OPSET: what the oldest readers of it know, such as ONNX Runtime 1.17 in Android clients
MASKED = 1e4  # subtracted from the scores of keys that are not valid: within float16, and exp of it is zero


def export(task: Task) -> Interface:
    """Writes the step of one stream, with the metadata that sherpa-onnx asks for if it can serve the model; or what
    takes whole recordings, with the interface of `Geometry.input_shapes`.

    Numerics: float32; float16 with float32 at the interface, in the runtime's own operators or stabilised; int8:
    matrices, and at run time what they are multiplied with, by ONNX Runtime's dynamic quantisation with a scale for
    each output; or int8-static: every product and convolution between QuantizeLinear and DequantizeLinear, with the
    ranges of real speech, as compilers for NPUs want it. Weights then have 7 bits.
    """
    geometry, numerics, path = task.geometry, task.numerics, task.path
    layout = LAYOUTS.get(numerics, LAYOUT)
    graph = (_convert_whole if geometry.whole else _convert)(task.model, geometry, layout)
    _write_products_plainly(graph)
    _fold_constants(graph)
    if not geometry.whole:
        _add_interface(graph, geometry)
        if not_for_sherpa(task.config) is None:
            _add_metadata(graph, geometry)
    if numerics.startswith("float16"):
        sortable = OnnxModel(convert_float_to_float16(graph, keep_io_types=True, op_block_list=[]))
        sortable.topological_sort()  # the conversion appends its casts
        graph = sortable.model
    graph.ir_version = IR_VERSION
    onnx.save(graph, str(path))
    if numerics.startswith("int8"):
        with _quiet():
            _quantise(graph, task)
        graph = onnx.load(str(path))
    onnx.checker.check_model(str(path), full_check=True)
    return Interface(_declared(graph.graph.input), _declared(graph.graph.output))


def _convert(model: ConformerCTC, geometry: Geometry, layout: Constant) -> Any:
    """The step with the interface's inputs but the unused ones, the mask in float32.

    The client's mask knows no look-ahead: a frame of that is valid where the last feature frame that it needs is not of
    zeros, which stand behind the end of an utterance.
    """
    model, layout = lay_out(model, geometry), layout.looking_ahead(geometry.look_ahead)
    frames = range(geometry.chunk_size, geometry.window_frames)
    ends = np.array([geometry.lengths.needed(frame + 1) - 1 for frame in frames], int)

    def wenet_step(x: jax.Array, attn_cache: jax.Array, conv_cache: jax.Array, valid: jax.Array, *start: Any) -> Any:
        states = []
        for layer in range(geometry.num_layers):
            key, value = jnp.split(attn_cache[layer], 2, axis=-1)
            states.append(Past(key, value, conv_cache[layer, 0].T))
        positions = key_positions(geometry, start[0]) if start else None
        keys = valid.reshape(-1)
        if geometry.look_ahead:
            keys = jnp.concatenate([keys, jnp.sign(jnp.max(jnp.abs(x[0, ends]), axis=-1))])
        logits, states = model.logits(x[0], (keys - 1.0) * MASKED, states, layout, positions)
        attention = jnp.stack([jnp.concatenate([state.key, state.value], axis=-1) for state in states])
        convolution = jnp.stack([state.inputs.T[None] for state in states])
        return layout.log_softmax(logits)[None], attention, convolution

    caches = cache_shapes(geometry).values()
    shapes = ((1, geometry.window, geometry.num_mel_bins), *caches, mask_shape(geometry))
    start = {"start": (1,)} if geometry.positions == "absolute" else {}
    shapes += tuple(start.values())
    return to_onnx(
        wenet_step,
        [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes],
        opset=OPSET,
        normalization_mode="prefer_native",
        input_names=["x", "attn_cache", "conv_cache", "valid", *start],
        output_names=list(OUTPUTS),
    )


def _convert_whole(model: ConformerCTC, geometry: Geometry, layout: Constant) -> Any:
    return to_onnx(
        lambda *inputs: flat_step(model, geometry, layout=layout)(*inputs)[0],
        specifications(geometry),
        opset=OPSET,
        normalization_mode="prefer_native",
        input_names=list(geometry.input_shapes),
        output_names=["log_probs"],
    )


def _fold_constants(model: onnx.ModelProto) -> None:
    """Computes what depends on constants alone, and drops constants that nothing uses.

    A runtime would compute it at each start, or in each step.
    """
    graph, kept = model.graph, []
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    for node in graph.node:
        if set(node.input) <= constants.keys():
            evaluator: Any = ReferenceEvaluator(node, opsets={"": OPSET})
            results = evaluator.run(None, {name: constants[name] for name in node.input})
            constants.update(zip(node.output, results, strict=True))
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    for field, values in {
        "node": kept,
        "initializer": [numpy_helper.from_array(constants[name], name) for name in constants if name in used],
        "value_info": [value for value in graph.value_info if value.name not in constants],
    }.items():
        graph.ClearField(field)
        getattr(graph, field).extend(values)


def _write_products_plainly(model: onnx.ModelProto) -> None:
    """Makes a MatMul of every Gemm without a bias, and of an Einsum that is one: the quantiser takes no other.

    ONNX Runtime joins product and bias again.
    """
    for node in model.graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        no_bias = node.op_type == "Gemm" and attributes.get("beta") == 0.0 and not attributes.get("transB")
        if no_bias or (node.op_type == "Einsum" and attributes["equation"] == b"abcd,de->abce"):
            node.op_type = "MatMul"
            del node.input[2:], node.attribute[:]


def _quantise(model: onnx.ModelProto, task: Task) -> None:
    """Quantises the exported file in place."""
    # 7 bits: x86 without VNNI adds two products in int16, and 8 bits would saturate it.
    options: dict[str, Any] = {"weight_type": QuantType.QInt8, "reduce_range": True, "per_channel": True}
    options["nodes_to_exclude"] = _products_of_heads(model)
    path = str(task.path)
    if task.numerics == "int8":
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul"], **options)
    else:
        options |= {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt8}
        quantize_static(path, path, _Streams(task), op_types_to_quantize=["MatMul", "Gemm", "Conv"], **options)


class _Streams(CalibrationDataReader):
    """The inputs of the step over the streams of the calibration, the state carried from chunk to chunk."""

    def __init__(self, task: Task):
        self._inputs = self._chained(task)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next inputs, None after the last."""
        return next(self._inputs, None)

    @staticmethod
    def _chained(task: Task) -> Iterator[dict[str, np.ndarray]]:
        runtime = OnnxRuntime(task.path, task.geometry, task.config.features)
        chunk_size, size = task.geometry.chunk_size, task.geometry.window_frames
        for windows in task.calibration:
            runtime.reset()
            for index, window in enumerate(windows):
                yield runtime.inputs(window, task.geometry.valid_keys(index * chunk_size, size))
                runtime(window[None], np.full(1, size, np.int32))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the advice to optimise the graph first: ONNX Runtime optimises it later."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _products_of_heads(model: onnx.ModelProto) -> list[str]:
    """Products with a constant of each head, of which ONNX Runtime takes no scale for each output."""
    constants = {constant.name for constant in model.graph.initializer if len(constant.dims) > 2}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def _add_interface(model: onnx.ModelProto, geometry: Geometry) -> None:
    """Declares the inputs of INPUTS in their order: a boolean mask, cast where the graph begins; unused integers."""
    graph = model.graph
    declared = {value.name: copy.deepcopy(value) for value in graph.input}
    for name in ("offset", "required_cache_size"):
        declared[name] = helper.make_tensor_value_info(name, TensorProto.INT64, [1])
    declared["attn_mask"] = helper.make_tensor_value_info("attn_mask", TensorProto.BOOL, mask_shape(geometry))
    graph.node.insert(0, helper.make_node("Cast", ["attn_mask"], ["valid"], to=TensorProto.FLOAT))
    if "start" in declared:  # frames of the stream before the chunk
        graph.node.insert(0, helper.make_node("Cast", ["offset"], ["start"], to=TensorProto.FLOAT))
    del graph.input[:]
    graph.input.extend(declared[name] for name in INPUTS)


def _declared(values: Any) -> dict[str, list]:
    tensors = {value.name: value.type.tensor_type for value in values}
    return {
        name: [np.dtype(helper.tensor_dtype_to_np_dtype(t.elem_type)).name, [d.dim_value for d in t.shape.dim]]
        for name, t in tensors.items()
    }


def _add_metadata(model: onnx.ModelProto, geometry: Geometry) -> None:
    values = {
        "model_type": "wenet_ctc",
        "version": 1,
        "head": geometry.num_heads,
        "num_blocks": geometry.num_layers,
        "output_size": geometry.encoder_dim,
        "cnn_module_kernel": geometry.kernel_size,
        # The client's windows end so many feature frames after a chunk's last frame begins.
        "right_context": geometry.right_context + geometry.look_ahead * geometry.subsampling_factor,
        "subsampling_factor": geometry.subsampling_factor,
        "vocab_size": geometry.vocab_size,
        # For a reader; the client is told them again.
        "chunk_size": geometry.chunk_size,
        "num_left_chunks": geometry.num_left_chunks,
    }
    helper.set_model_props(model, {name: str(value) for name, value in values.items()})
