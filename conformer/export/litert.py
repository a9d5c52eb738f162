"""LiteRT, for phones and watches: a flatbuffer by way of StableHLO, without TensorFlow.

The interface is that of `conformer.artefacts.litert`.
"""

from collections.abc import Callable

import jax
from ai_edge_quantizer import quantizer, recipe  # pyright: ignore[reportMissingImports]
from litert_converter.mlir import ir, passmanager  # pyright: ignore
from litert_converter.mlir._mlir_libs import converter_api_ext  # pyright: ignore

from conformer.artefacts.geometry import Geometry
from conformer.artefacts.litert import SIGNATURE
from conformer.export.formats import Interface, Task
from conformer.export.quiet import quiet
from conformer.export.step import LAYOUT, LAYOUTS, describe, flat_step, specifications


def export(task: Task) -> Interface:
    """Writes the step, ending in log-probabilities: float32, or int8 weights and inputs quantised as they come.

    float16-stable is float32 too: the delegates that compute in float16, of GPUs and NPUs, take such files.
    """
    layout = LAYOUTS.get(task.numerics, LAYOUT)
    flatbuffer = convert(flat_step(task.model, task.geometry, layout=layout), task.geometry, "log_probs")
    task.path.write_bytes(flatbuffer)
    if task.numerics == "int8":
        with quiet():
            engine = quantizer.Quantizer(str(task.path), recipe.dynamic_wi8_afp32())
            task.path.write_bytes(engine.quantize().quantized_model or b"")
    return describe(task.geometry, "log_probs")


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
