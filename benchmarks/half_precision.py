"""Models compiled to float16 (IREE), each repair of the numerics taken away alone, with larger residual streams.

Beside the step of a recogniser on real speech stand the two models of examples/large_residuals.py. Nothing is emulated
here but what is compared with it: the error of those two.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.compiled_half import PACKAGES, compile_half
from benchmarks.differences import FAST_COMPILATION
from benchmarks.policies import EDGE, REPAIRS, STATIC
from conformer import record
from conformer.artefacts.geometry import MASKED, Geometry
from conformer.artefacts.runtime import Runtime
from conformer.data import load_split
from conformer.export.parity import Parity
from conformer.export.pipeline import reference
from conformer.export.step import flat_step, specifications
from conformer.model import ConformerCTC
from conformer.model.layouts.constant import Constant
from conformer.model.layouts.stabilised import NUMERICS, Stabilised
from conformer.numerics import apply_policy, scale_residual
from conformer.numerics.apply import attention_fn, replace_children
from conformer.numerics.modules import Norm, raw_softmax
from conformer.policy import Policy
from conformer.training.checkpoint import load_model
from examples import large_residuals as examples

POLICIES = tuple(policy for policy in REPAIRS if policy is not STATIC)
SCALES = (1.0, 64.0, 1024.0)
PEAKS = (1e2, 3e3, 3e4)  # of the examples
CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4


@dataclasses.dataclass(frozen=True)
class Repaired(Stabilised):
    """The exporters' form for float16, without the repairs that a policy lacks."""

    policy: Policy = EDGE

    def norm(self, module, x):
        return super().norm(module, x) if self.policy.stabilised_norm else Constant.norm(self, module, x)

    def softmax(self, scores: Any) -> Any:
        return super().softmax(scores) if self.policy.stabilised_softmax else raw_softmax(scores, jnp.array(True))


class HalfStep(Runtime):
    """A recogniser's step in compiled float16."""

    def _load(self, path: pathlib.Path, *, model: ConformerCTC, layout: Repaired) -> None:
        run = flat_step(model, self.geometry, layout.log_softmax, layout)
        self._call = compile_half(run, *specifications(self.geometry))

    def _step(self, window: np.ndarray, valid: np.ndarray) -> np.ndarray:
        log_probs, *parts = self._call(window, np.where(valid, 0, MASKED).astype(np.float32), *self._state.values())
        self._state = dict(zip(self._state, parts, strict=True))
        return log_probs


def run(workdir: str | pathlib.Path, path: str | None = None) -> dict:
    """Scores the model of a work directory on its test split, and the examples' errors, for each policy.

    Args:
        path: the record. Its rows are written as they come, and one of the same model and versions that was interrupted
            is continued.
    """
    config, model, tokenizer, step = load_model(pathlib.Path(workdir))
    key = {"model": pathlib.Path(workdir).name, "step": step, "iree": record.versions(*PACKAGES)}
    result = _interrupted(path, key) or key | {"complete": False, "rows": [], "examples": []}

    def keep() -> None:
        if path:
            record.write(path, result)

    geometry = Geometry.of(config, model, CHUNK_SIZE, NUM_LEFT_CHUNKS)
    cases = list(itertools.product(POLICIES, SCALES))[max(len(result["rows"]) - 1, 0) :]
    if cases:
        parity = Parity(reference(config, model, geometry), tokenizer, load_split(config, None, "test"))
        result["rows"] = result["rows"] or [{"policy": "float32", "residual_scale": 1.0} | parity.reference]
        for policy, factor in cases:
            scaled, layout = scale_residual(model, factor), Repaired(policy)
            stepper = HalfStep(pathlib.Path(), geometry, config.features, model=scaled, layout=layout)
            found = {name: _finite(value) for name, value in parity.measure(stepper).items()}
            result["rows"].append({"policy": policy.name, "residual_scale": factor} | found)
            print(line(result["rows"][-1]), flush=True)
            keep()
    result["examples"] = []
    for row in example_rows():
        result["examples"].append(row)
        print(row, flush=True)
    return result | {"complete": True}


def _interrupted(path: str | None, key: dict) -> dict | None:
    """The record as far as it came, or None where there is none of the same model and versions."""
    if path is None or not pathlib.Path(path).exists():
        return None
    found = json.loads(pathlib.Path(path).read_text())
    same = not found.get("complete", True) and all(found.get(name) == value for name, value in key.items())
    return found if same else None


def example_rows() -> Iterator[dict]:
    """Relative errors of the examples' logits, compiled and emulated; None where they are not finite."""
    for make, inputs in examples.example_inputs().items():
        models = [make(rngs=nnx.Rngs(0)) for _ in PEAKS]
        for model, peak in zip(models, PEAKS, strict=True):
            examples.add_peak(model, peak)
        for policy in POLICIES:
            ways = {
                "compiled": relative_errors(models, inputs, functools.partial(repaired, policy=policy), compile_half),
                "emulated": relative_errors(models, inputs, functools.partial(apply_policy, policy=policy), _jit),
            }
            for index, peak in enumerate(PEAKS):
                errors = {way: _finite(found[index]) for way, found in ways.items()}
                yield {"model": make.__name__, "peak": peak, "policy": policy.name} | errors


def relative_errors(
    models: Sequence[nnx.Module],
    inputs: jax.Array,
    change: Callable[[nnx.Module], nnx.Module],
    compile: Callable[..., Callable],
) -> list[float]:
    """|logits - float32 logits| / |float32 logits| of models that differ in their parameters alone, compiled once."""
    exact = [np.asarray(nnx.jit(lambda model: model(inputs))(model)) for model in models]
    graphdef, parameters, rest = nnx.split(change(models[0]), nnx.Param, ...)
    leaves, tree = jax.tree.flatten(parameters)

    def function(inputs: jax.Array, *leaves: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), rest)(inputs)

    run = compile(function, inputs, *leaves)
    found = [run(inputs, *jax.tree.leaves(nnx.state(change(model), nnx.Param))) for model in models]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, exact, strict=True)]


def _jit(function: Callable, *_: Any) -> Callable:
    return jax.jit(function, compiler_options=FAST_COMPILATION)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def repaired[M: nnx.Module](model: M, policy: Policy) -> M:
    """A copy of a model of NNX's modules, in the form `Repaired`."""
    model, layout = nnx.clone(model), Repaired(policy)
    if policy.stabilised_norm:
        kinds = nnx.LayerNorm | nnx.RMSNorm
        replace_children(model, lambda _, child: Norm(child, NUMERICS) if isinstance(child, kinds) else child)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.MultiHeadAttention):
            masked = lambda scores, seen: layout.softmax(jnp.where(seen, scores, MASKED))  # noqa: E731
            module.attention_fn = attention_fn(module.attention_fn, masked)
    return model


def line(row: dict) -> str:
    """One row of the recogniser's table."""
    return (
        f"{row['policy']:<32}residual x {row['residual_scale']:<6.0f} WER {row['wer']:7.2%}  ({row['errors']} errors)"
    )
