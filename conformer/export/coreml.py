"""Core ML: an .mlpackage in float16 for the Neural Engine, the state kept by Core ML.

The step is the network in Core ML's own operations (`conformer.model.layouts.coreml`).

Written and checked on any system (`conformer.artefacts.mil_interpreter`); compilation, placement and latency need macOS
(examples/coreml_macos.py).
"""

import shutil
from typing import Any

import coremltools as ct  # pyright: ignore[reportMissingImports]
import numpy as np
from coremltools.converters.mil import Builder  # pyright: ignore[reportMissingImports]
from coremltools.converters.mil.mil import Function, Program, types  # pyright: ignore[reportMissingImports]

from conformer.artefacts.coreml import input_shapes, state_shapes
from conformer.artefacts.geometry import Geometry
from conformer.export.formats import Interface, Task
from conformer.export.quiet import quiet
from conformer.model import ConformerCTC
from conformer.model.layouts.coreml import CoreMl as CoreMlLayout
from conformer.model.layouts.layout import Past
from conformer.model.positions import frequencies

mb: Any = Builder  # its operations are registered when it is imported


def export(task: Task) -> Interface:
    """Writes the package: float32 features, mask and log-probabilities, float16 between them."""
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
    inputs = {name: ["float32", list(shape)] for name, shape in input_shapes(g).items()}
    states = {f"state {name}": ["float16", list(shape)] for name, shape in state_shapes(g).items()}
    return Interface(inputs | states, {"log_probs": ["float32", [1, g.vocab_size, 1, g.chunk_size]]})


def program(model: ConformerCTC, geometry: Geometry) -> Any:
    """The step in MIL."""
    shapes = state_shapes(geometry)
    tensors = {name: mb.TensorSpec(shape) for name, shape in input_shapes(geometry).items()}
    states = {name: mb.StateTensorSpec(shape, dtype=types.fp16) for name, shape in shapes.items()}

    layout = CoreMlLayout().looking_ahead(geometry.look_ahead)
    model = layout.lay_out(model, geometry.window_frames, geometry.num_keys)

    def build(window: Any, mask: Any, offset: Any = None, **states: Any) -> Any:
        positions = None if offset is None else key_positions(geometry, offset)
        held = [mb.read_state(input=state) for state in states.values()]
        pasts = [
            Past(*(mb.slice_by_size(x=a, begin=[layer, 0, 0, 0], size=[1, *a.shape[1:]]) for a in held))
            for layer in range(geometry.num_layers)
        ]
        logits, pasts = model.logits(window, mb.cast(x=mask, dtype="fp16"), pasts, layout, positions)
        # Before the log-softmax: coremltools 9.0 fails where an update is the last operation.
        for state, parts in zip(states.values(), zip(*pasts, strict=True), strict=True):
            mb.coreml_update_state(state=state, value=mb.concat(values=parts, axis=0))
        logits = mb.cast(x=logits, dtype="fp32")
        return mb.sub(x=logits, y=mb.reduce_log_sum_exp(x=logits, axes=[1], keep_dims=True), name="log_probs")

    with Function(tensors | states, ct.target.iOS18) as function:
        function.set_outputs([build(**function.inputs)])
    built = Program()
    built.add_function("main", function)
    return built


def key_positions(geometry: Geometry, offset: Any) -> Any:
    """The sinusoids of all keys of the chunk that begins after `offset` frames, (1, encoder_dim, 1, keys) in float16.

    Their angles are in float32: float16 cannot count beyond 2048.
    """
    keys = np.arange(-geometry.left, geometry.window_frames, dtype=np.float32)
    places = mb.add(x=offset, y=keys[None, None, None])
    angles = mb.mul(x=places, y=frequencies(geometry.encoder_dim)[None, :, None, None])
    pairs = mb.concat(values=[mb.sin(x=angles), mb.cos(x=angles)], axis=2)
    rows = mb.reshape(x=pairs, shape=[1, geometry.encoder_dim, 1, geometry.num_keys])
    return mb.cast(x=rows, dtype="fp16")
