"""The recogniser with each implementation of its kernels: the same logits, the same gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conformer.config import POSITIONS, ConfigError
from conformer.model import ConformerCTC
from conformer.model.layouts import SEQUENCE
from conformer.numerics import apply_policy
from kernels.chunked_attention import chunk_rows
from kernels.device import current_device
from kernels.implementation import Unsupported
from tests.implementations import KERNELS, running
from tests.small_model import make_config, make_model, random_model


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    return jnp.asarray(12 + rng.standard_normal((2, 60, 24)), jnp.float32), jnp.array([60, 41])


@functools.cache
def outputs(name, compute, positions):
    """Logits, and the gradient of their squares, of a chunked pass."""
    config = make_config(causal_conv=False, kernels=name, num_layers=1, positions=positions)
    shapes = nnx.eval_shape(lambda: ConformerCTC(config, compute=compute, rngs=nnx.Rngs(0)))
    graphdef, shapes, rest_shapes = nnx.split(shapes, nnx.Param, ...)
    model = make_model(num_layers=1, positions=positions)[1]
    trained = dict(nnx.to_flat_state(nnx.state(model)))
    params, rest = (
        nnx.from_flat_state([(path, trained[path]) for path, _ in nnx.to_flat_state(s)]) for s in (shapes, rest_shapes)
    )
    features, lengths = batch()

    def loss(params):
        logits, frames = nnx.merge(graphdef, params, rest)(features, lengths, chunk_size=4, num_left_chunks=1)
        inside = jnp.arange(logits.shape[1])[None, :, None] < frames[:, None, None]
        return jnp.sum(jnp.where(inside, jnp.square(logits), 0.0)), logits

    with running(name):
        (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return np.asarray(logits), jax.tree.map(np.asarray, gradient)


def error(result, exact):
    """The largest of logits and gradients, relative to the largest value of each array."""
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True)
    return max(np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "name, compute",
    [
        ("xla", "float32"),
        pytest.param("mosaic_tpu", "float32", marks=pytest.mark.slow),
        # A GPU's products of matrices take 16 bits; as long as all others here.
        pytest.param("mosaic_gpu", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_logits_and_gradients_do_not_depend_on_the_kernels(name, compute, positions):
    """They err no more than the reference in the same format, or by the rounding of float32."""
    exact = outputs("reference", "float32", positions)
    allowed = max(1e-4, 1.5 * error(outputs("reference", compute, positions), exact))
    assert error(outputs(name, compute, positions), exact) <= allowed < 0.2


@functools.cache
def emulated_attention(name, compute):
    """Computes a recogniser's attention under the policy of a float16 device, with its softmax from tables."""
    config = make_config(kernels=name, num_layers=1)
    model = nnx.eval_shape(lambda: ConformerCTC(config, compute=compute, rngs=nnx.Rngs(0)))
    model = nnx.merge(nnx.graphdef(model), nnx.state(random_model(make_config(num_layers=1), seed=1, vectors=0.3)))
    attention = apply_policy(model, "edge_fp16").encoder.blocks[0].attention
    x = 4 * np.random.default_rng(0).standard_normal((2, 10, 16)).astype(np.float32)
    seen = SEQUENCE.seen(*chunk_rows(10, jnp.array([10, 7]), 4, 1), 10, None)
    with running(name):
        return np.asarray(jax.jit(lambda x: attention(x, seen, None, SEQUENCE)[0])(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, compute", [("mosaic_tpu", "float32"), pytest.param("mosaic_gpu", "float16", marks=pytest.mark.slow)]
)
def test_an_emulated_device_attends_from_its_tables_in_the_kernels_too(name, compute):
    """A kernel is one operation of the device: it adds up in float32, and its result is rounded."""
    expected, got = emulated_attention("xla", "float32"), emulated_attention(name, compute)
    np.testing.assert_allclose(got, expected, atol=2**-8 * np.abs(expected).max())
    np.testing.assert_array_equal(got, got.astype(np.float16))


def test_an_emulated_device_takes_no_kernel_that_was_not_named():
    _, model = make_model(num_layers=1)
    assert model.encoder.blocks[0].attention.implementation is None
    assert apply_policy(model, "edge_fp16").encoder.blocks[0].attention.implementation == "xla"


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_cannot_run_here_are_an_error_and_no_other_runs_instead(name):
    config = make_config(kernels=name, num_layers=1)
    with pytest.raises(Unsupported, match=f"implementation='{name}' needs .* use implementation='xla'"):
        nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0))(*batch()))


def test_the_key_is_validated():
    with pytest.raises(ConfigError, match=r"model\.kernels='cuda' is not one of , reference, xla"):
        make_config(kernels="cuda")


def test_the_default_device_may_be_the_name_of_a_platform():
    with jax.default_device("cpu"):
        assert current_device().platform == "cpu"
