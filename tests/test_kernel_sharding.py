"""Kernels on several devices, and where XLA or JAX would have to look inside one.

Eight devices are shares of this machine's processor, in a process of their own (`python
tests/test_kernel_sharding.py`).
"""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from kernels.chunked_attention import chunked_attention
from kernels.chunked_attention.shapes import Shape
from kernels.device import Device, interpreted
from kernels.implementation import Unsupported
from kernels.layer_norm import layer_norm
from kernels.lut_softmax import softmax

KERNELS = ("mosaic_gpu", "mosaic_tpu")
ROOT = pathlib.Path(__file__).parents[1]
DIVIDED, WHOLE = PartitionSpec("data"), PartitionSpec()


def norm(x, scale, bias, **options):
    return layer_norm(x, scale, bias, **options)


def shared_softmax(x, scale, bias, **options):
    return softmax(x * scale, bias > 0, **options)


def problem(function, implementation):
    """Arguments, and how they are divided: a batch of 8, what is learned as a whole."""
    if function is chunked_attention:
        shape = Shape(8, 20, 20, 1, 8, 3, 8, 1)
        arguments = shape.arguments(jax.random.key(0), "bfloat16" if implementation == "mosaic_gpu" else "float32")
        return arguments, (DIVIDED, DIVIDED, DIVIDED, WHOLE, DIVIDED, DIVIDED)
    rng = np.random.default_rng(0)
    x, scale, bias = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((16, 32), (32,), (32,)))
    return (x, scale, bias), (DIVIDED, WHOLE, WHOLE)


def gradients(function, implementation, mesh, divided):
    """Of what is divided and of what is whole, through `jax.shard_map` as it is by default."""
    call = functools.partial(function, implementation=implementation)
    mapped = jax.shard_map(call, mesh=mesh, in_specs=divided, out_specs=DIVIDED)
    return jax.grad(lambda *a: jnp.sum(jnp.square(mapped(*a).astype(jnp.float32))), (0, divided.index(WHOLE)))


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("function", [norm, shared_softmax, chunked_attention])
def test_gradients_have_the_axes_of_shard_map(function, implementation):
    arguments, divided = problem(function, implementation)
    mesh = AbstractMesh((8,), ("data",), (AxisType.Auto,))
    with interpreted(implementation):
        shapes = jax.eval_shape(gradients(function, implementation, mesh, divided), *arguments)
    assert [a.shape for a in shapes] == [arguments[0].shape, arguments[divided.index(WHOLE)].shape]


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_second_derivative_is_an_error_that_names_the_alternative(implementation):
    (x, scale, bias), _ = problem(norm, implementation)
    loss = jax.grad(lambda s: jnp.sum(jnp.square(norm(x, s, bias, implementation=implementation))))
    with interpreted(implementation), pytest.raises(Unsupported, match=r"layer_norm: .* no second: use .*'xla'"):
        jax.eval_shape(jax.grad(lambda s: jnp.sum(loss(s))), scale)


@pytest.mark.parametrize("capability", [10.0, 12.0])
def test_a_gpu_after_hopper_is_named_where_attention_would_not_compile(capability, monkeypatch):
    from kernels.chunked_attention import mosaic_gpu

    device = Device("gpu", "NVIDIA B200", capability)
    monkeypatch.setattr(mosaic_gpu, "current_device", lambda: device)
    arguments, _ = problem(chunked_attention, "mosaic_gpu")
    attend = functools.partial(chunked_attention, implementation="mosaic_gpu")
    with interpreted("mosaic_gpu"), pytest.raises(Unsupported, match=r"wgmma.*'NVIDIA B200' cannot: use .*'xla'"):
        jax.eval_shape(attend, *arguments)


@pytest.mark.slow
def test_eight_devices_compute_as_one_or_say_why_not():
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def check_on_eight_devices() -> None:
    """Runs norms and softmax in the interpreter of a TPU, and looks for errors in the others.

    Attention has a grid of traced size, which that interpreter does not take on a mesh, and that of a GPU waits for
    ever there: they are traced above.
    """
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for function in (norm, shared_softmax):
        arguments, divided = problem(function, "mosaic_tpu")
        expected = jax.jit(gradients(function, "xla", mesh, divided))(*arguments)
        with interpreted("mosaic_tpu"):
            got = jax.jit(gradients(function, "mosaic_tpu", mesh, divided))(*arguments)
        for mine, right in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine, right, atol=1e-4)
    for implementation in KERNELS:
        for function in (norm, shared_softmax, chunked_attention):
            arguments, divided = problem(function, implementation)
            placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arguments, divided, strict=True)]
            call = functools.partial(function, implementation=implementation)
            with interpreted(implementation), pytest.raises(Unsupported, match=r"inside jax\.shard_map over all axes"):
                jax.jit(call).lower(*placed)


if __name__ == "__main__":
    check_on_eight_devices()
