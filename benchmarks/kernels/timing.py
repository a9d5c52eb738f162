"""Device time of a function, and the rates of the device that bound it.

A run applies the function a number of times in one program, to several inputs in turn, together larger than the caches.
Its results become the inputs of the next application to the same, behind a barrier, so that no compiler can leave one
out or merge two. The difference of a long and a short run holds neither the launch of the program nor its transfers: it
is device time alone.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

ROTATED_BYTES = 2**28  # of inputs together; the caches of an H200 hold 2^26
MOST_INPUTS = 8
ROUNDS = 7


def device_seconds(function: Callable[..., Any], draw: Callable[[int], tuple[jax.Array, ...]]) -> float:
    """The median time of one application."""
    first = draw(0)
    size = sum(a.nbytes for a in first)
    count = min(MOST_INPUTS, max(2, -(-ROTATED_BYTES // size)))
    inputs = [first, *(draw(seed) for seed in range(1, count))]
    runs = [jax.jit(_repeated(function, times)) for times in (count, 3 * count)]
    for run in runs:
        jax.block_until_ready(run(inputs))
    rounds = [[_seconds(run, inputs) for run in runs] for _ in range(ROUNDS)]
    short, long = (statistics.median(times) for times in zip(*rounds, strict=True))
    if long <= short:
        raise RuntimeError("too short to be timed beside what else this machine does")
    return (long - short) / (2 * count)


def rates() -> dict[str, float]:
    """Bytes a second of a copy, read and written, and operations a second of a product of bfloat16 matrices."""
    large = jax.default_backend() != "cpu"
    elements, size = (2**28, 8192) if large else (2**25, 512)

    def vector(seed: int) -> tuple[jax.Array]:
        return (jnp.full(elements, seed, jnp.float32),)

    def matrices(seed: int) -> tuple[jax.Array, ...]:
        keys = jax.random.split(jax.random.key(seed))
        return tuple(jax.random.normal(key, (size, size)).astype(jnp.bfloat16) for key in keys)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16)

    return {
        "copy_bytes_per_second": 8 * elements / device_seconds(jnp.negative, vector),
        "operations_per_second": 2 * size**3 / device_seconds(product, matrices),
    }


def _repeated(function: Callable[..., Any], times: int) -> Callable[[list], Any]:
    def run(inputs: list) -> Any:
        for index in range(times):
            place = index % len(inputs)
            results = jax.tree.leaves(function(*inputs[place]))
            inputs = lax.optimization_barrier(
                [*inputs[:place], _fed_back(inputs[place], results), *inputs[place + 1 :]]
            )
        return inputs

    return run


def _fed_back(arguments: Sequence[jax.Array], results: list[jax.Array]) -> list[jax.Array]:
    """The arguments, each result in the place of one of its shape and format: gradients first, then the result."""
    fed, free = list(arguments), list(range(len(arguments)))
    for result in reversed(results):
        alike = [i for i in free if (fed[i].shape, fed[i].dtype) == (result.shape, result.dtype)]
        if alike:
            fed[alike[0]] = result
            free.remove(alike[0])
    if len(free) == len(arguments):
        raise ValueError("no result has the shape and format of an argument: it would not be computed")
    return fed


def _seconds(run: Callable[[list], Any], inputs: list) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(inputs))
    return time.perf_counter() - start
