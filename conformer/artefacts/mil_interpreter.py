"""Runs a saved Core ML package in NumPy, to check weights, states and float16 rounding where there is no macOS.

Every operation is computed in float32 and its result rounded to its type, as the package declares it. The Neural Engine
may keep more or fewer bits inside an operation: its own numerics are not what is checked here.
"""

import collections
import pathlib
from collections.abc import Callable
from typing import Any

import coremltools as ct  # pyright: ignore[reportMissingImports]
import numpy as np
from coremltools.converters.mil.frontend.milproto.load import load  # pyright: ignore[reportMissingImports]
from coremltools.converters.mil.mil import types  # pyright: ignore[reportMissingImports]

from conformer.artefacts.formats import ExportError


def load_package(path: pathlib.Path) -> Any:
    """The program of a saved package, weights included."""
    package: Any = ct.models.MLModel(str(path), skip_model_load=True)
    specification: Any = package.get_spec()
    return load(
        specification,
        specification_version=specification.specificationVersion,
        file_weights_dir=package.weights_dir,
    )


class MilInterpreter:
    """A program of MIL; states are arrays that a call updates in place."""

    def __init__(self, program: Any):
        self._function = program.functions["main"]
        if unknown := {op.op_type for op in self._function.operations} - set(OPERATIONS) - STATEFUL:
            raise ExportError(f"{', '.join(sorted(unknown))} cannot be interpreted: add it to {__name__}.OPERATIONS")

    def __call__(self, inputs: dict[str, np.ndarray], states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values: dict[str, Any] = dict(inputs)

        def value(variable: Any) -> Any:
            if isinstance(variable, list | tuple):
                return [value(part) for part in variable]
            return values.get(variable.name, variable.val)

        for op in self._function.operations:
            if op.op_type == "const":
                continue
            if op.op_type == "read_state":
                values[op.outputs[0].name] = states[op.inputs["input"].name].copy()
                continue
            arguments = {name: value(variable) for name, variable in op.inputs.items() if variable is not None}
            if op.op_type == "coreml_update_state":
                states[op.inputs["state"].name][...] = arguments["value"]
                values[op.outputs[0].name] = states[op.inputs["state"].name].copy()
                continue
            results = OPERATIONS[op.op_type](**{k: _wide(v) for k, v in arguments.items()})
            for output, result in zip(op.outputs, results if isinstance(results, list) else [results], strict=True):
                with np.errstate(over="ignore"):
                    values[output.name] = np.asarray(result).astype(types.nptype_from_builtin(output.dtype))
        return {output.name: values[output.name] for output in self._function.outputs}

    def layouts(self) -> dict[str, int]:
        """Counts the results of operations by layout: "(B, C, 1, S)", "(B, C, H, S)" with H > 1, or their rank."""
        counts = collections.Counter()
        for op in self._function.operations:
            if op.op_type == "const" or op.op_type in STATEFUL:
                continue
            for output in op.outputs:
                shape = output.shape
                counts[f"rank {len(shape)}" if len(shape) != 4 else f"(B, C, {1 if shape[2] == 1 else 'H'}, S)"] += 1
        return dict(counts)


def _wide(x: Any) -> Any:
    if isinstance(x, list):
        return [_wide(part) for part in x]
    return x.astype(np.float32) if isinstance(x, np.ndarray | np.generic) and x.dtype == np.float16 else x


def _conv(x, weight, strides, groups=1, bias=None, **_) -> np.ndarray:
    height, width = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    batch, channels, *space = windows.shape
    grouped = windows.reshape(batch, groups, channels // groups, *space)
    kernels = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    y = np.einsum("bgchwij,gocij->bgohw", grouped, kernels, optimize=True).reshape(batch, -1, *space[:2])
    return y if bias is None else y + bias[:, None, None]


def _softmax(x, axis) -> np.ndarray:
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def _log_sum_exp(x, axes, keep_dims) -> np.ndarray:
    largest = x.max(axis=tuple(axes), keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis=tuple(axes), keepdims=True))


def _slice(x, begin, size) -> np.ndarray:
    return x[tuple(slice(b, b + s) for b, s in zip(begin, size, strict=True))]


def _slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, **_) -> np.ndarray:
    starts = [None if begin_mask is not None and begin_mask[i] else b for i, b in enumerate(begin)]
    ends = [None if end_mask is not None and end_mask[i] else e for i, e in enumerate(end)]
    return x[tuple(map(slice, starts, ends, [None] * x.ndim if stride is None else stride))]


def _split(x, axis, num_splits=None, split_sizes=None) -> list[np.ndarray]:
    places: Any = num_splits if split_sizes is None else np.cumsum(split_sizes)[:-1]
    return np.split(x, places, axis)


def _pad(x, pad, **_) -> np.ndarray:
    """Zeros along the last axes, (before, after) each."""
    widths = np.reshape(pad, (-1, 2))
    return np.pad(x, [(0, 0)] * (x.ndim - len(widths)) + [tuple(pair) for pair in widths])


def _sigmoid(x) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


STATEFUL = {"const", "read_state", "coreml_update_state"}
OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,
    "concat": lambda values, axis, interleave=False: np.concatenate(values, axis),
    "conv": _conv,
    "cos": lambda x: np.cos(x),
    "einsum": lambda values, equation: np.einsum(equation, *values),
    "exp2": lambda x: np.exp2(x),
    "floor": lambda x: np.floor(x),
    "log": lambda x, epsilon=0.0: np.log(x + epsilon),
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "real_div": lambda x, y: x / y,
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": lambda x, axes, keep_dims: x.max(axis=tuple(axes), keepdims=bool(keep_dims)),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axis=tuple(axes), keepdims=bool(keep_dims)),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(axis=tuple(axes), keepdims=bool(keep_dims)),
    "relu": lambda x: np.maximum(x, 0),
    "reshape": lambda x, shape, **_: x.reshape(shape),
    "sigmoid": _sigmoid,
    "sign": lambda x: np.sign(x),
    "silu": lambda x: x * _sigmoid(x),
    "sin": lambda x: np.sin(x),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice,
    "softmax": _softmax,
    "split": _split,
    "sqrt": lambda x: np.sqrt(x),
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: x.transpose(perm),
}
