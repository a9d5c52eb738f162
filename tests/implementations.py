"""The implementations that the tests of kernels share, each run or lowered on this machine."""

import contextlib
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from kernels.device import interpreted, lowered_for

KERNELS = ("mosaic_gpu", "mosaic_tpu")
IMPLEMENTATIONS = ("xla", *KERNELS)


def running(implementation: str):
    """A context in which it runs on the CPU."""
    return interpreted(implementation) if implementation in KERNELS else contextlib.nullcontext()


def usual(implementation: str) -> str:
    """A format in which every implementation attends, the widest that this one has."""
    return "float16" if implementation == "mosaic_gpu" else "float32"


def races_found(implementation: str) -> bool:
    """Whether accesses raced in the last kernel that was interpreted with detect_races=True."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as tpu  # no public way to what was found
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks as gpu

    races: Any = gpu.get_races() if implementation == "mosaic_gpu" else tpu.races
    return races.races_found


@contextlib.contextmanager
def annotations_ignored():
    """Inside, the annotations of signatures are not enforced, as they are in tests alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def lower(implementation: str, function, *arrays) -> str:
    """The program for its device, of a function of arrays of these shapes."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    with lowered_for(implementation) as platform:
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def operations_on(elements: int, program: str) -> set[str]:
    """The operations of a lowered program that read or write a tensor of so many elements or more."""
    found = re.findall(r"stablehlo\.(\w+)([^\n]*)", program)
    return {
        name
        for name, line in found
        for sizes in re.findall(r"tensor<((?:\d+x)+)", line)
        if math.prod(map(int, sizes.split("x")[:-1])) >= elements
    }


def array_sizes(jaxpr):
    """Elements of every array that a trace makes."""
    for equation in jaxpr.eqns:
        yield from (math.prod(variable.aval.shape) for variable in equation.outvars if hasattr(variable.aval, "shape"))
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))):
            if isinstance(parameter, (ClosedJaxpr, Jaxpr)):
                yield from array_sizes(getattr(parameter, "jaxpr", parameter))


def normal(seed: int, *shape: int, format="float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), format)


def roundings(format) -> float:
    """Tolerance of a few roundings, of results of size one."""
    return 3 * float(jnp.finfo(format).eps)
