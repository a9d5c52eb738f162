"""Programs compiled to float16 (the extra `iree`): each operation is rounded, as the emulator rounds it."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import compiled_half
from benchmarks.compiled_half import compile_half
from benchmarks.half_precision import EDGE, POLICIES, HalfStep, Repaired, relative_errors, repaired
from conformer.artefacts.geometry import MASKED, Geometry, zeros
from conformer.config import ModelConfig
from conformer.export.step import flat_step
from conformer.model.norm import LayerNorm
from conformer.numerics import scale_residual
from conformer.policy import get_policy
from conformer.training.checkpoint import load_model
from examples import large_residuals as examples
from kernels.emulator import FLOAT16, Arithmetic
from kernels.emulator.emulate import emulate

ROOT = pathlib.Path(__file__).parents[1]
needs_iree = pytest.mark.skipif(not compiled_half.available(), reason="IREE is not installed: the extra iree")
NAIVE = get_policy("edge_fp16_naive")
STABILISED, DEFINED = Repaired(EDGE), Repaired(NAIVE)


def halves(*shape: int) -> np.ndarray:
    """Rows of nine decades."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * 10.0 ** rng.uniform(-5, 4, (*shape[:-1], 1))
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


def test_a_missing_iree_is_named(monkeypatch):
    monkeypatch.setattr(compiled_half, "available", lambda: False)
    with pytest.raises(ValueError, match=r"iree-base-compiler.*pip install"):
        compile_half(jnp.exp, np.zeros(1, np.float32))


@needs_iree
def test_operations_are_rounded_one_by_one():
    """The numbers would be others if sums were computed in float32, or two operations fused into one."""

    def operations(x, y, z, rows, matrix):
        return x + y - z, x * y * z, x * x - y, jnp.sum(rows, axis=-1), rows @ matrix

    x, y, z = (np.array(values, np.float32) for values in ([6e4, 2048, 1.001], [6e4, 1, 1], [6e4, 2048, 1e-7]))
    rows = np.zeros((2, 64), np.float32)
    rows[0, :3] = [6e4, 6e4, -6e4]
    rows[1] = 1
    rows[1, 0] = 2048  # to which 1 adds nothing in float16
    inputs = x, y, z, rows, np.ones((64, 8), np.float32)
    found = compile_half(operations, *inputs)(*inputs)
    a, b, c = (np.float16(values) for values in (x, y, z))
    with np.errstate(over="ignore"):
        expected = a + b - c, a * b * c, a * a - b
    for one, other in zip(found[:3], expected, strict=True):
        np.testing.assert_array_equal(one, other.astype(np.float32))
    np.testing.assert_array_equal(found[3], [np.inf, 2048])
    np.testing.assert_array_equal(found[4], np.repeat([[np.inf], [2048]], 8, axis=1))


@needs_iree
def test_compiled_and_emulated_are_the_same_bit_for_bit():
    """The parts that a step is made of, sums in sequence as the compiler has them."""
    rng = np.random.default_rng(1)
    x = halves(500, 144)
    norm = LayerNorm(144, ModelConfig())
    norm.scale[...], norm.bias[...] = (jnp.asarray(halves(144)) for _ in range(2))
    weights = rng.normal(size=(144, 24)).astype(np.float16).astype(np.float32)

    def parts(x, scores):
        softmax = STABILISED.softmax(scores), STABILISED.log_softmax(scores), DEFINED.softmax(scores)
        return STABILISED.norm(norm, x), x @ weights, jnp.sum(jnp.square(x), axis=-1), *softmax

    scores = x / 1000
    scores = scores.astype(np.float16).astype(np.float32)
    found = compile_half(parts, x, scores)(x, scores)
    expected = jax.jit(emulate(parts, Arithmetic(FLOAT16, block=1)))(x, scores)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(found[0]).all() and not np.isfinite(found[2]).all()


@needs_iree
@pytest.mark.slow
def test_each_repair_is_needed_by_the_step_of_the_shipped_model():
    """On windows of noise that is standardised; on speech: bench.py half_precision."""
    config, model, _, _ = load_model(ROOT / "models" / "words")
    model.encoder.blocks = nnx.List(model.encoder.blocks[:1])  # the others are compiled just alike
    config = config.replace({"model.num_layers": 1})
    geometry = Geometry.of(config, model, 8, 1)
    noise = np.random.default_rng(0).standard_normal((1, geometry.window, config.features.num_mel_bins), np.float32)
    window = np.asarray(noise / model.feature_scale[...] + model.feature_mean[...])
    found = {}
    for policy in POLICIES[:2]:
        step = HalfStep(
            pathlib.Path(), geometry, config.features, model=scale_residual(model, 1024.0), layout=Repaired(policy)
        )
        found[policy.name] = step(window, np.full(1, geometry.chunk_size, np.int32))
    inputs = [window[0], np.zeros(geometry.num_keys, np.float32), *zeros(geometry.state_shapes).values()]
    inputs[1][: geometry.left] = MASKED
    exact = flat_step(model, geometry)(*inputs)[0]
    assert np.abs(found[POLICIES[0].name] - exact).max() < 0.1
    naive = found[POLICIES[1].name]
    assert not np.isfinite(naive).all() or np.abs(naive - exact).max() > 1


@needs_iree
@pytest.mark.slow
def test_a_language_model_of_other_modules_is_repaired_too():
    make = examples.LanguageModel
    model, inputs = make(rngs=nnx.Rngs(0)), examples.example_inputs()[make]
    examples.add_peak(model, 3e3)
    errors = [
        relative_errors([model], inputs, functools.partial(repaired, policy=policy), compile_half)[0]
        for policy in (EDGE, NAIVE)
    ]
    assert errors[0] < 0.01 and not errors[1] < 0.5
