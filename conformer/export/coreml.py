"""Core ML: an .mlpackage in float16 for the Neural Engine, the state kept by Core ML.

The step is the network in Core ML's own operations (`conformer.model.layouts.coreml`).

Written and checked on any system (`conformer.artefacts.mil_interpreter`); compilation, placement and latency need macOS
(examples/coreml_macos.py).
"""

import shutil
from typing import Any

import coremltools as ct  # pyright: ignore[reportMissingImports]
from coremltools.converters.mil import Builder  # pyright: ignore[reportMissingImports]
from coremltools.converters.mil.mil import types  # pyright: ignore[reportMissingImports]

from conformer.artefacts.coreml import state_shapes
from conformer.artefacts.geometry import Geometry
from conformer.export.formats import Interface, Task
from conformer.export.quiet import quiet
from conformer.model import ConformerCTC
from conformer.model.layouts.coreml import CoreMl as CoreMlLayout
from conformer.model.layouts.layout import Past

mb: Any = Builder  # its operations are registered when it is imported


def export(task: Task) -> Interface:
    """Writes the package: float32 features, mask and log-probabilities, float16 between them."""
    shapes = state_shapes(task.geometry)
    built = program(task.model, task.geometry)
    pipeline: Any = ct.PassPipeline.DEFAULT
    pipeline.remove_passes({"common::fuse_elementwise_to_batchnorm"})  # mixes types where these are float16
    with quiet():
        package: Any = ct.convert(
            built,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,  # as the program has it, which is float16
            minimum_deployment_target=ct.target.iOS18,
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
    shutil.rmtree(task.path, ignore_errors=True)
    package.save(str(task.path))
    g = task.geometry
    inputs = {"window": ["float32", [1, 1, g.num_mel_bins, g.window]], "mask": ["float32", [1, g.num_keys, 1, 1]]}
    states = {f"state {name}": ["float16", list(shape)] for name, shape in shapes.items()}
    return Interface(inputs | states, {"log_probs": ["float32", [1, g.vocab_size, 1, g.chunk_size]]})


def program(model: ConformerCTC, geometry: Geometry) -> Any:
    """The step in MIL."""
    shapes = state_shapes(geometry)
    window_spec = mb.TensorSpec((1, 1, geometry.num_mel_bins, geometry.window))
    mask_spec = mb.TensorSpec((1, geometry.num_keys, 1, 1))
    states = [mb.StateTensorSpec(shape, dtype=types.fp16) for shape in shapes.values()]

    layout = CoreMlLayout()
    model = layout.lay_out(model, geometry.chunk_size, geometry.num_left_chunks)

    def build(window: Any, mask: Any, *states: Any) -> Any:
        held = [mb.read_state(input=state) for state in states]
        pasts = [
            Past(*(mb.slice_by_size(x=a, begin=[layer, 0, 0, 0], size=[1, *a.shape[1:]]) for a in held))
            for layer in range(geometry.num_layers)
        ]
        logits, pasts = model.logits(window, mb.cast(x=mask, dtype="fp16"), pasts, layout)
        # Before the log-softmax: coremltools 9.0 fails where an update is the last operation.
        for state, parts in zip(states, zip(*pasts, strict=True), strict=True):
            mb.coreml_update_state(state=state, value=mb.concat(values=parts, axis=0))
        logits = mb.cast(x=logits, dtype="fp32")
        return mb.sub(x=logits, y=mb.reduce_log_sum_exp(x=logits, axes=[1], keep_dims=True), name="log_probs")

    # A lambda: the names of its arguments are read, which a function that is checked at run time does not show.
    decorate = mb.program(input_specs=[window_spec, mask_spec, *states], opset_version=ct.target.iOS18)
    return decorate(lambda window, mask, key, value, inputs: build(window, mask, key, value, inputs))
