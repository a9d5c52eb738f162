"""LiteRT, for phones and watches: a flatbuffer by way of StableHLO, without TensorFlow.

The interface is a signature with an input and an output for each part of the state, by the names of `tensor_names`.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ai_edge_litert import interpreter as litert  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer import quantizer, recipe  # pyright: ignore[reportMissingImports]
from litert_converter.mlir import ir, passmanager  # pyright: ignore
from litert_converter.mlir._mlir_libs import converter_api_ext  # pyright: ignore

from conformer.export.formats import Interface, Task
from conformer.export.runtime import Runtime, quiet
from conformer.export.state import MASKED, describe, flat_step, specifications, tensor_names
from conformer.export.step import Geometry

SIGNATURE = "serving_default"


def export(task: Task) -> Interface:
    """Writes the step, ending in log-probabilities: float32, or int8 weights and inputs quantised as they come."""
    flatbuffer = convert(flat_step(task.model, task.geometry, jax.nn.log_softmax), task.geometry, "log_probs")
    task.path.write_bytes(flatbuffer)
    if task.numerics == "int8":
        with quiet():
            engine = quantizer.Quantizer(str(task.path), recipe.dynamic_wi8_afp32())
            task.path.write_bytes(engine.quantize().quantized_model or b"")
    return describe(task.geometry, "log_probs")


class LiteRt(Runtime):
    """LiteRT's interpreter on one thread, with XNNPACK or with the built-in kernels alone."""

    def __init__(self, path: pathlib.Path, geometry: Geometry, *, xnnpack: bool = True):
        super().__init__(path, geometry)
        resolver = litert.OpResolverType.AUTO if xnnpack else litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = litert.Interpreter(str(path), num_threads=1, experimental_op_resolver_type=resolver)
        self._run = interpreter.get_signature_runner(SIGNATURE)
        self._names = tensor_names(geometry)
        self._reset()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"": {}, " without XNNPACK": {"xnnpack": False}}

    def _reset(self) -> None:
        self._state = dict(zip(self._names, jax.tree.leaves(self.geometry.initial_state()), strict=True))

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        results = self._run(window=window, mask=np.where(valid, 0, MASKED).astype(np.float32), **self._state)
        self._state = {name: results[f"next_{name}"] for name in self._names}
        return results["log_probs"]


def convert(function: Callable, geometry: Geometry, output: str) -> bytes:
    """The flatbuffer of a `flat_step` whose first output is called `output`."""
    exported = jax.export.export(jax.jit(function), platforms=["cpu"])(*specifications(geometry))
    interface = describe(geometry, output)
    context = ir.Context()  # pyright: ignore[reportAttributeAccessIssue]
    converter_api_ext.prepare_mlir_context(context)
    with context, ir.Location.unknown():  # pyright: ignore[reportAttributeAccessIssue]
        module = ir.Module.parse(  # pyright: ignore[reportAttributeAccessIssue]
            exported.mlir_module()
        )
        converter_api_ext.set_signature(
            module.operation,
            signature_name=SIGNATURE,
            input_names=list(interface.inputs),
            output_names=list(interface.outputs),
        )
        config = converter_api_ext.ConvertToTFLConfig()
        config.model_origin_framework = "JAX"
        passes = passmanager.PassManager()  # pyright: ignore[reportAttributeAccessIssue]
        converter_api_ext.run_convert_to_tfl_passes(module, passes, config)
        return converter_api_ext.export_flatbuffer_to_bytes(module.operation)
