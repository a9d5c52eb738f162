"""Device time of a function, and the rates of the device that bound it.

A function is compiled once and called again and again, on different inputs in turn, together larger than the caches
where they are not small. On an NVIDIA GPU the time is that of its kernels, as CUPTI counts it for JAX's own Mosaic GPU:
neither launches nor the gaps between kernels are in it. Elsewhere it is the wall's, of many calls at once.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Draw = Callable[[int], tuple[jax.Array, ...]]
ROTATED_BYTES = 2**28  # of inputs together; the caches of an H200 hold 2^26
MOST_INPUTS = 8
ROUNDS = 7
BLOCK_SECONDS, MOST_CALLS = 0.02, 1000  # of a round


class Timing(NamedTuple):
    """Args:
    seconds: the median of one application.
    clock: "cupti" or "wall".
    cached: whether all inputs together are small enough to stay in the caches.
    """

    seconds: float
    clock: str
    cached: bool


def device_seconds(function: Callable[..., Any], draw: Draw) -> Timing:
    """Times a function of what `draw` gives for a seed; it is compiled here, once, unless it is jitted already."""
    first = draw(0)
    size = sum(a.nbytes for a in first)
    count = min(MOST_INPUTS, max(2, -(-ROTATED_BYTES // size)))
    inputs = [first, *(draw(seed) for seed in range(1, count))]
    function = function if isinstance(function, jax.stages.Wrapped) else jax.jit(function)
    for arguments in inputs[:2]:
        jax.block_until_ready(function(*arguments))
    cached = count * size < ROTATED_BYTES
    if jax.default_backend() == "gpu" and (seconds := _kernel_seconds(function, inputs)):
        return Timing(seconds, "cupti", cached)
    return Timing(_wall_seconds(function, inputs), "wall", cached)


def rates() -> dict[str, float]:
    """Bytes a second of a copy, read and written, and operations a second of a product of bfloat16 matrices."""
    large = jax.default_backend() != "cpu"
    elements, size = (2**28, 8192) if large else (2**24, 512)

    def matrices(seed: int) -> tuple[jax.Array, ...]:
        keys = jax.random.split(jax.random.key(seed))
        return tuple(jax.random.normal(key, (size, size)).astype(jnp.bfloat16) for key in keys)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16)

    return {
        "copy_bytes_per_second": 8 * elements / copy_seconds(4 * elements).seconds,
        "operations_per_second": 2 * size**3 / device_seconds(product, matrices).seconds,
    }


def copy_seconds(size: int) -> Timing:
    """Of reading so many bytes and writing as many."""
    return device_seconds(jnp.negative, lambda seed: (jnp.full(-(-size // 4), seed, jnp.float32),))


def _kernel_seconds(function: Callable[..., Any], inputs: Sequence[tuple]) -> float | None:
    """By CUPTI; None where it does not work, or another tool has it."""
    try:
        from jax._src.lib import mosaic_gpu  # what jax.experimental.mosaic.gpu.profiler calls, on one input alone

        counter = mosaic_gpu._mosaic_gpu_ext  # pyright: ignore[reportPrivateImportUsage]
        counter._cupti_init()
    except (ImportError, AttributeError, RuntimeError):
        return None
    calls = max(ROUNDS, len(inputs))
    _call(function, inputs, calls)
    try:
        kernels = [milliseconds for _, milliseconds in counter._cupti_get_timings(True)]
    except RuntimeError:
        return None
    a_call, rest = divmod(len(kernels), calls)
    if rest or not a_call:
        return None
    return statistics.median(sum(kernels[i * a_call : (i + 1) * a_call]) for i in range(calls)) / 1000


def _wall_seconds(function: Callable[..., Any], inputs: Sequence[tuple]) -> float:
    """Of so many calls at once that waiting for the last one is little beside them."""
    once = _call(function, inputs, len(inputs)) / len(inputs)
    calls = min(MOST_CALLS, max(len(inputs), math.ceil(BLOCK_SECONDS / once)))
    return statistics.median(_call(function, inputs, calls) for _ in range(ROUNDS)) / calls


def _call(function: Callable[..., Any], inputs: Sequence[tuple], calls: int) -> float:
    """Seconds of so many calls, the inputs in turn."""
    start = time.perf_counter()
    jax.block_until_ready([function(*inputs[i % len(inputs)]) for i in range(calls)])
    return time.perf_counter() - start
