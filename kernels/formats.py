"""The floating-point formats of tensors: which an operation takes, and how a result is stored in one."""

import jax.numpy as jnp

from kernels.typing import Array, Float

COMPUTED = ("float32", "bfloat16", "float16")  # that products of matrices and exponentials are made in
STORED = (*COMPUTED, "float8_e4m3fn", "float8_e5m2")


def check(operation: str, name: str, x: Array, formats: tuple[str, ...]) -> None:
    """Raises ValueError for an argument of an operation in none of the formats."""
    if x.dtype.name not in formats:
        raise ValueError(f"{operation}: the format of {name} is {x.dtype}, not one of {', '.join(formats)}: cast it")


def stored(y: Float[Array, "*shape"], format: jnp.dtype) -> Float[Array, "*shape"]:
    """y in the format of a tensor; beyond the range of a float8, which may have no infinity, its largest value."""
    if jnp.dtype(format).itemsize == 1:
        largest = float(jnp.finfo(format).max)
        y = jnp.clip(y, -largest, largest)
    return y.astype(format)
