"""Counts the operations that move data and compute nothing: transposes, reshapes, copies, gathers.

They are counted for one chunk of a stream: in the graph that is handed to a compiler and in XLA's program for the CPU,
both in each layout, and in the graph that is exported to ONNX. Operations on parameters alone do not count: a device
does them once, when it loads the model.
"""

import collections
import contextlib
import math
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Literal

from benchmarks import harness
from benchmarks.chunk import CHUNK_SIZE, NUM_LEFT_CHUNKS, benchmark_config, random_model
from conformer.artefacts.formats import ExportError
from conformer.artefacts.geometry import Geometry
from conformer.config import EXECUTIONS, Config
from conformer.export.formats import Task, backend
from conformer.model import ConformerCTC

KINDS = ("transpose", "reshape", "copy", "gather", "concatenate", "slice")
Counts = dict[str, tuple[int, int]]  # operations and bytes written, by kind


def run(config: Config | None = None) -> dict:
    """`bench.py copies`: of the 20 M parameter model unless told."""
    config, views = config or benchmark_config(), {}
    for execution in EXECUTIONS:
        laid_out = config.replace({"model.execution": execution})
        views |= {
            f"{execution}: graph": graph_copies(laid_out),
            f"{execution}: compiled for the CPU": compiled_copies(laid_out),
        }
    with contextlib.suppress(ExportError):
        views["exported to ONNX"] = onnx_copies(config)
    return {"num_layers": config.model.num_layers, "views": views}


def table(result: dict) -> str:
    """Operations and megabytes by kind."""
    rows = [
        (view, *(f"{counts[kind][0]}, {counts[kind][1] / 1e6:.2f} MB" for kind in KINDS))
        for view, counts in result["views"].items()
    ]
    sizes = f"A chunk of {CHUNK_SIZE} frames, {NUM_LEFT_CHUNKS} chunks of left context, {result['num_layers']} blocks."
    return f"{harness.table(('', *KINDS), rows)}\n{sizes}"


# ------------------------------------------------------------------------- graph


def graph_copies(config: Config) -> Counts:
    """Counts the copies in the traced step, which every compiler is given."""
    step, state, inputs = _step(config)
    closed = jax.make_jaxpr(step)(state, *inputs)
    parameters = len(jax.tree.leaves(state))
    constant = [index < parameters for index in range(len(closed.jaxpr.invars))]
    return _count(_moves(closed.jaxpr, constant))


_PRIMITIVES = {
    "transpose": "transpose",
    "reshape": "reshape",
    "squeeze": "reshape",
    "copy": "copy",
    "gather": "gather",
    "concatenate": "concatenate",
    "slice": "slice",
    "split": "slice",
}


def _moves(jaxpr: Any, constant: list[bool]) -> Iterator[tuple[str, int]]:
    """The kind and the bytes of each operation on what does not follow from parameters alone."""
    known = {variable for variable, is_constant in zip(jaxpr.invars, constant, strict=True) if is_constant}
    known |= set(jaxpr.constvars)
    for equation in jaxpr.eqns:
        given = [isinstance(v, Literal) or v in known for v in equation.invars]
        inner = next((equation.params[n] for n in ("jaxpr", "call_jaxpr", "fun_jaxpr") if n in equation.params), None)
        if inner is not None:
            yield from _moves(getattr(inner, "jaxpr", inner), given)
        if all(given):
            known |= set(equation.outvars)
        elif kind := _PRIMITIVES.get(equation.primitive.name):
            shapes = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            if kind != "reshape" or not _only_ones_change(*shapes):
                yield kind, sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars)


def _step(config: Config) -> tuple[Any, Any, tuple]:
    """step(state, cache, window), and the shapes of its arguments."""
    model = nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0)))
    num_keys = CHUNK_SIZE * (NUM_LEFT_CHUNKS + 1)
    model = nnx.eval_shape(lambda model: model.encoder.layout.lay_out(model, CHUNK_SIZE, num_keys), model)
    graphdef, state = nnx.split(model)

    def step(state, cache, window):
        model = nnx.merge(graphdef, state)
        x, cache = model.encoder.step(cache, model.standardise(window))
        return model.log_softmax(model.head(x)), cache

    window = (1, model.encoder.subsampling.window(CHUNK_SIZE), config.features.num_mel_bins)
    cache = jax.eval_shape(lambda: model.encoder.initial_cache(1, CHUNK_SIZE, NUM_LEFT_CHUNKS))
    return step, state, (cache, jax.ShapeDtypeStruct(window, jnp.float32))


# ---------------------------------------------------------------------- compiled

_INSTRUCTION = re.compile(r"= (\w+?)(\d+)\[([\d,]*)\]\S* (transpose|copy|reshape|gather|concatenate|slice)\(")


def compiled_copies(config: Config) -> Counts:
    """Counts the copies in what XLA's CPU backend runs. It convolves channels last only, and transposes for it."""
    step, state, inputs = _step(config)
    text = jax.jit(step).lower(state, *inputs).compile().as_text() or ""
    return _count(
        (kind, int(bits) // 8 * math.prod(map(int, filter(None, shape.split(",")))))
        for _, bits, shape, kind in _INSTRUCTION.findall(text)
    )


# -------------------------------------------------------------------------- ONNX

_OPERATORS = {
    "Transpose": "transpose",
    "Reshape": "reshape",
    "Squeeze": "reshape",
    "Unsqueeze": "reshape",
    "Flatten": "reshape",
    "Identity": "copy",
    "Gather": "gather",
    "GatherND": "gather",
    "Concat": "concatenate",
    "Slice": "slice",
    "Split": "slice",
}


def onnx_copies(config: Config) -> Counts:
    """Counts the copies in the step that `conformer.export` writes, after ONNX Runtime has folded the constants.

    Raises ExportError where a package is missing.
    """
    exporter = backend("onnx")
    import onnx  # optional extras, which are there now
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "step.onnx")
        options.optimized_model_filepath = str(path.with_name("folded.onnx"))
        model = random_model(config)
        geometry = Geometry.of(config, model, CHUNK_SIZE, NUM_LEFT_CHUNKS)
        exporter.export(Task(config, model, geometry, "float32", path, []))
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.shape_inference.infer_shapes(onnx.load(options.optimized_model_filepath)).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    moves = []
    for node in graph.node:
        kind = _OPERATORS.get(node.op_type)
        if kind and not (kind == "reshape" and _only_ones_change(shapes[node.input[0]], shapes[node.output[0]])):
            moves.append((kind, sum(4 * math.prod(shapes[name]) for name in node.output)))
    return _count(moves)


def _only_ones_change(before: Sequence[int], after: Sequence[int]) -> bool:
    """A reshape that adds or drops axes of one is none: the bytes stay where they are."""
    return [n for n in before if n > 1] == [n for n in after if n > 1]


def _count(moves: Iterable[tuple[str, int]]) -> Counts:
    operations, written = collections.Counter(), collections.Counter()
    for kind, size in moves:
        operations[kind] += 1
        written[kind] += size
    return {kind: (operations[kind], written[kind]) for kind in KINDS}
