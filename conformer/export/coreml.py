"""Core ML: an .mlpackage in float16 for the Neural Engine, the state kept by Core ML.

The step is written in Core ML's own operations (MIL), in the layout that the engine computes in: (batch, channels, 1,
frames). A linear map is a 1x1 convolution, attention is done a head at a time as two products of the form
nchw,nwhu->nchu, keys are kept transposed, and LayerNorm is stabilised with the pre-normaliser of docs/numerics.md: its
sum of squares could overflow. Softmax is Core ML's, which shifts by the maximum.

Written and checked on any system (`conformer.artefacts.mil_interpreter`); compilation, placement and latency need macOS
(examples/coreml_macos.py).
"""

import shutil
from typing import Any

import coremltools as ct  # pyright: ignore[reportMissingImports]
import numpy as np
from coremltools.converters.mil import Builder  # pyright: ignore[reportMissingImports]
from coremltools.converters.mil.mil import types  # pyright: ignore[reportMissingImports]
from flax import nnx

from conformer.artefacts.coreml import state_shapes
from conformer.artefacts.geometry import Geometry
from conformer.export.formats import Interface, Task
from conformer.export.quiet import quiet
from conformer.export.step import position_bias
from conformer.model import ConformerCTC
from conformer.model.attention import Attention
from conformer.model.block import Block
from conformer.model.convolution import Convolution
from conformer.model.feed_forward import FeedForward
from conformer.model.layers import LayerNorm
from conformer.model.subsampling import DenseConv, Subsampling

mb: Any = Builder  # its operations are registered when it is imported
LIMIT = 65504 / 4  # of the sum of squares in LayerNorm; the rest is headroom for rounding
STATES = ("key", "value", "inputs")


def export(task: Task) -> Interface:
    """Writes the package: float32 features, mask and log-probabilities, float16 between them."""
    shapes = state_shapes(task.geometry)
    program = _program(task.model, task.geometry)
    pipeline: Any = ct.PassPipeline.DEFAULT
    pipeline.remove_passes({"common::fuse_elementwise_to_batchnorm"})  # mixes types where these are float16
    with quiet():
        package: Any = ct.convert(
            program,
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


def _program(model: ConformerCTC, geometry: Geometry) -> Any:
    shapes = state_shapes(geometry)
    window_spec = mb.TensorSpec((1, 1, geometry.num_mel_bins, geometry.window))
    mask_spec = mb.TensorSpec((1, geometry.num_keys, 1, 1))
    states = [mb.StateTensorSpec(shape, dtype=types.fp16) for shape in shapes.values()]

    def build(window: Any, mask: Any, key: Any, value: Any, inputs: Any) -> Any:
        mean, scale = (np.asarray(a[...])[None, None, :, None] for a in (model.feature_mean, model.feature_scale))
        x = front_end(model.encoder.subsampling, _half(mb.mul(x=mb.sub(x=window, y=mean), y=scale)))
        mask = _half(mask)
        held = {name: mb.read_state(input=state) for name, state in zip(STATES, (key, value, inputs), strict=True)}
        new: dict[str, list] = {name: [] for name in STATES}
        for layer, module in enumerate(model.encoder.blocks):
            past = {
                name: mb.slice_by_size(x=a, begin=[layer, 0, 0, 0], size=[1, *a.shape[1:]]) for name, a in held.items()
            }
            x, kept = block(module, x, mask, past)
            for name in STATES:
                new[name].append(kept[name])
        # Before the head: coremltools 9.0 fails where an update is the last operation.
        for name, state in zip(STATES, (key, value, inputs), strict=True):
            mb.coreml_update_state(state=state, value=mb.concat(values=new[name], axis=0))
        logits = mb.cast(x=linear(model.head, x), dtype="fp32")
        return mb.sub(x=logits, y=mb.reduce_log_sum_exp(x=logits, axes=[1], keep_dims=True), name="log_probs")

    # A lambda: the names of its arguments are read, which a function that is checked at run time does not show.
    program = mb.program(input_specs=[window_spec, mask_spec, *states], opset_version=ct.target.iOS18)
    return program(lambda window, mask, key, value, inputs: build(window, mask, key, value, inputs))


def front_end(module: Subsampling, x: Any) -> Any:
    """Convolutions over (frequency, time), of which the last takes in all frequencies that are left."""
    for stage in module.stages:
        kernel = np.asarray(stage.kernel[...])
        if isinstance(stage, DenseConv):
            weight, bias = kernel.transpose(3, 2, 1, 0), np.asarray(stage.bias[...])
            x = _convolve(x, weight, bias, stage.strides[::-1])
        else:
            x = _convolve(x, kernel.transpose(2, 1, 0)[:, None], None, stage.strides[::-1], groups=kernel.shape[2])
            x = linear(stage.pointwise, x)
        x = mb.relu(x=x)
    weight, bias = _weights(module.projection)
    weight = weight.reshape(x.shape[2], x.shape[1], -1).transpose(2, 1, 0)[..., None]
    return _convolve(x, weight, bias)


def block(module: Block, x: Any, mask: Any, past: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """See `Block`; returns the block's next state beside the output."""
    frames = x.shape[3]
    x = mb.add(x=x, y=feed_forward(module.first_feed_forward, x))
    attended, key, value = attention(module.attention, x, mask, past["key"], past["value"])
    x = mb.add(x=x, y=attended)
    convolved, inputs = convolution(module.convolution, x, past["inputs"])
    x = mb.add(x=x, y=convolved)
    x = mb.add(x=x, y=feed_forward(module.second_feed_forward, x))
    return norm(module.norm, x), {
        "key": _slice(key, 1, frames),
        "value": _slice(value, 3, frames),
        "inputs": _slice(inputs, 3, frames),
    }


def feed_forward(module: FeedForward, x: Any) -> Any:
    """Half of it, as a block adds it; the half is in the weights."""
    return linear(module.contract, mb.silu(x=linear(module.expand, norm(module.norm, x))), 0.5)


def attention(module: Attention, x: Any, mask: Any, past_key: Any, past_value: Any) -> tuple[Any, Any, Any]:
    """Returns the output, and the keys (transposed) and values of past and x together."""
    channels, heads = x.shape[1], module.num_heads
    scale = np.ones(3 * channels, np.float32)
    scale[:channels] = (channels // heads) ** -0.5
    query, key, value = mb.split(x=linear(module.query_key_value, norm(module.norm, x), scale), num_splits=3, axis=1)
    key = mb.concat(values=[past_key, mb.transpose(x=key, perm=[0, 3, 2, 1])], axis=1)
    value = mb.concat(values=[past_value, value], axis=3)
    bias = position_bias(module.relative_bias[...], x.shape[3], key.shape[1]).transpose(0, 2, 1).astype(np.float16)
    parts = [mb.split(x=a, num_splits=heads, axis=axis) for a, axis in ((query, 1), (key, 3), (value, 1))]
    outputs = []
    for head, (q, k, v) in enumerate(zip(*parts, strict=True)):
        scores = mb.einsum(values=(k, q), equation="nchw,nwhu->nchu")
        scores = mb.add(x=scores, y=mb.add(x=bias[head][None, :, None], y=mask))
        outputs.append(mb.einsum(values=(v, mb.softmax(x=scores, axis=1)), equation="nchw,nwhu->nchu"))
    return linear(module.output, mb.concat(values=outputs, axis=1)), key, value


def convolution(module: Convolution, x: Any, past: Any) -> tuple[Any, Any]:
    """Returns the output, and the inputs of the depthwise convolution."""
    value, gate = mb.split(x=linear(module.gate, norm(module.norm, x)), num_splits=2, axis=1)
    inputs = mb.concat(values=[past, mb.mul(x=value, y=mb.sigmoid(x=gate))], axis=3)
    y = _convolve(inputs, np.asarray(module.kernel[...]).T[:, None, None], None, groups=x.shape[1])
    return linear(module.output, mb.silu(x=norm(module.middle_norm, y))), inputs


def norm(module: LayerNorm, x: Any) -> Any:
    """(x - mean) / s / sqrt(mean((x - mean)^2 / s^2) + eps / s^2) scale + bias, s = sqrt(sum|c| max|c| / LIMIT).

    s as in Theorem 3 of docs/numerics.md, c divided by max|c| first, so that nothing on the way overflows.
    """
    centred = mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[1], keep_dims=True))
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=centred), axes=[1], keep_dims=True), y=np.float16(2**-14))
    unit = mb.real_div(x=centred, y=largest)
    total = mb.maximum(x=mb.reduce_sum(x=mb.abs(x=unit), axes=[1], keep_dims=True), y=np.float16(1))
    root = mb.sqrt(x=mb.mul(x=total, y=np.float16(1 / LIMIT)))  # s / max|c|
    scaled = mb.real_div(x=unit, y=root)
    eps = mb.real_div(x=np.float16(np.sqrt(module.eps)), y=mb.mul(x=largest, y=root))
    variance = mb.add(x=mb.reduce_mean(x=mb.mul(x=scaled, y=scaled), axes=[1], keep_dims=True), y=mb.mul(x=eps, y=eps))
    scale, bias = (np.asarray(a[...]).astype(np.float16)[None, :, None, None] for a in (module.scale, module.bias))
    return mb.add(x=mb.mul(x=mb.real_div(x=scaled, y=mb.sqrt(x=variance)), y=scale), y=bias)


def linear(module: nnx.Linear, x: Any, scale: np.ndarray | float = 1.0) -> Any:
    """(W x + b) scale at every position, the scale multiplied into the weights."""
    weight, bias = _weights(module)
    return _convolve(x, (weight * scale).T[:, :, None, None], bias * scale)


def _weights(module: nnx.Linear) -> tuple[np.ndarray, np.ndarray]:
    assert module.bias is not None  # every linear map of the model has one
    return np.asarray(module.kernel[...]), np.asarray(module.bias[...])


def _convolve(
    x: Any, weight: np.ndarray, bias: np.ndarray | None, strides: tuple[int, ...] = (1, 1), groups: int = 1
) -> Any:
    options = {} if bias is None else {"bias": bias.astype(np.float16)}
    return mb.conv(
        x=x, weight=weight.astype(np.float16), strides=list(strides), pad_type="valid", groups=groups, **options
    )


def _slice(x: Any, axis: int, start: int) -> Any:
    begin, size = [0] * 4, list(x.shape)
    begin[axis], size[axis] = start, x.shape[axis] - start
    return mb.slice_by_size(x=x, begin=begin, size=size)


def _half(x: Any) -> Any:
    return mb.cast(x=x, dtype="fp16")
