"""Measures the rates of this process's cores, which bound the time of a chunk."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness

REPEATS = 9
MATRIX = 1024  # rows and columns: the product runs from the caches
COPY_BYTES = 256 * 2**20  # far beyond the caches


def rates() -> dict[str, float]:
    """Operations a second of a product of matrices in each format, bytes a second of a copy (read and written).

    The faster of XLA and NumPy (BLAS) counts in float32; the other formats are XLA's alone.
    """
    found = {}
    for name, result in {"float32": jnp.float32, "bfloat16": jnp.float32, "int8": jnp.int32}.items():
        a = jnp.ones((MATRIX, MATRIX), name)
        product = jax.jit(lambda a, result=result: jnp.matmul(a, a, preferred_element_type=result))
        found[name] = 2 * MATRIX**3 / _fastest(lambda a=a, product=product: product(a))
    a = np.ones((MATRIX, MATRIX), np.float32)
    found["float32"] = max(found["float32"], 2 * MATRIX**3 / _fastest(lambda: a @ a))
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    found["copy"] = 2 * COPY_BYTES / _fastest(lambda: np.copyto(target, source))
    return found


def _fastest(run: Callable[[], object]) -> float:
    return min(harness.core_seconds(run, REPEATS))
