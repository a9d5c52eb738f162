"""The step of either layout as an ONNX graph, for `copies`; `conformer/export` writes the one that is shipped.

The exporter translates what it is given, operation by operation, and XLA's best form is not ONNX Runtime's: a depthwise
convolution written as shifted products becomes hundreds of slices. The step is therefore exported `in_onnx_forms`, with
the kernels in forms that become one ONNX operator each.
"""

import contextlib
import pathlib
import tempfile
import unittest.mock
from collections.abc import Callable
from typing import Any

import conformer.model.channels_first
import conformer.model.layers
import jax
import jax.numpy as jnp
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime  # pyright: ignore[reportMissingImports]
from flax import nnx
from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]

import kernels.chunked_attention.api
import kernels.depthwise_conv.xla
import kernels.layer_norm.api
from conformer.config import Config
from conformer.export.step import position_bias
from conformer.model import ConformerCTC

OPSET = 18  # below it, ReduceMean as jax2onnx 0.17.1 writes it does not pass ONNX's checker


def folded_step(config: Config, model: ConformerCTC, chunk_size: int, num_left_chunks: int) -> onnx.ModelProto:
    """The step of a stream, with what follows from constants computed beforehand, as ONNX Runtime does."""
    if config.model.execution == "channels_first":
        model = conformer.model.channels_first.lay_out(model, chunk_size, num_left_chunks)
    window = model.encoder.subsampling.window(chunk_size)
    cache, structure = jax.tree.flatten(model.encoder.initial_cache(1, chunk_size, num_left_chunks))

    def step(features: jax.Array, *cache: jax.Array) -> Any:
        x, new_cache = model.encoder.step(jax.tree.unflatten(structure, cache), model.normalise(features))
        return jax.nn.log_softmax(model.head(x)), *jax.tree.leaves(new_cache)

    features = jax.ShapeDtypeStruct((1, window, config.features.num_mel_bins), np.float32)
    inputs = [features, *(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in cache)]
    exported = in_onnx_forms(lambda: to_onnx(step, inputs, opset=OPSET, normalization_mode="prefer_native"))
    onnx.checker.check_model(exported, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(pathlib.Path(folder, "folded.onnx"))
        onnxruntime.InferenceSession(exported.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _layer_norm(x, residual, scale, bias, form):
    x = x if residual is None else x + residual
    total = None if residual is None else x
    if form.axis == 1:
        centred = x - jnp.mean(x, axis=1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred * centred, axis=1, keepdims=True) + form.eps)
        return centred / deviation * np.asarray(scale)[:, None, None] + np.asarray(bias)[:, None, None], total
    norm = nnx.LayerNorm(x.shape[-1], epsilon=form.eps, use_fast_variance=False, rngs=nnx.Rngs(0))
    norm.scale, norm.bias = nnx.Param(scale), nnx.Param(bias)
    return norm(x), total


def _pointwise(x, weight, _):
    height = len(weight) // x.shape[1]
    kernel = np.asarray(weight).reshape(height, x.shape[1], -1).transpose(2, 1, 0)[..., None]
    return _convolve(x, kernel, "OIHW", (1, 1))


def _convolve(x, kernel, kernel_layout, strides, groups=1):
    # The exporter knows one layout, and constants are laid out in NumPy, whose operations are not exported.
    lacking = "".join(axis for axis in "HWIO" if axis not in kernel_layout)
    kernel_layout += lacking
    axes = [kernel_layout.index(axis) for axis in "OIHW"]
    kernel = np.asarray(kernel).reshape(*kernel.shape, *[1] * len(lacking)).transpose(axes)
    order = strides if kernel_layout.index("H") < kernel_layout.index("W") else strides[::-1]
    return jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel),
        order,
        "VALID",
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=groups,
    )


def _depthwise_conv(x, kernel, stride):
    space = kernel.ndim - 1
    layout = ("NWC", "WIO", "NWC") if space == 1 else ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x,
        kernel[..., None, :],
        stride,
        "VALID",
        dimension_numbers=layout,
        feature_group_count=x.shape[-1],
    )


def _attention(query, key, value, relative_bias, key_start, key_end, *_):
    # The weights are constants here, and so is the bias, laid out now.
    bias = position_bias(relative_bias, query.shape[1], key.shape[1])
    keys = jnp.arange(key.shape[1])
    mask = (key_start[..., None] <= keys) & (keys < key_end[..., None])
    scores = jnp.matmul(query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1)) + bias
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30))
    return jnp.matmul(weights, value.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


# What stands for a function of a module, and for the implementation "xla" of an operation.
FORMS = {
    conformer.model.channels_first: {"convolve": _convolve},
    conformer.model.layers: {"_pointwise": _pointwise},
    kernels.depthwise_conv.xla: {"depthwise_conv": _depthwise_conv},
}
IMPLEMENTATIONS = {kernels.chunked_attention.api: _attention, kernels.layer_norm.api: _layer_norm}


def in_onnx_forms(trace: Callable[[], Any]) -> Any:
    """What `trace` returns, with operations that the exporter knows in the place of the kernels' own while it runs."""
    with contextlib.ExitStack() as stack:
        for module, forms in FORMS.items():
            stack.enter_context(unittest.mock.patch.multiple(module, **forms))
        for api, form in IMPLEMENTATIONS.items():
            stack.enter_context(unittest.mock.patch.dict(api.IMPLEMENTATIONS, xla=form))
        return trace()
