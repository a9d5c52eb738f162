"""Functions of JAX compiled to float16 by IREE: instructions that round every operation, unlike JAX's own.

Every float32 of the program becomes float16, sums and accumulators too. x86 processors convert each result to float16;
the flags keep the compiler from adding up in float32 and from changing the order of a sum. tests/test_compiled_half.py
shows that operations are rounded one by one.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

FLAGS = (
    "--iree-input-demote-f32-to-f16",
    "--iree-llvmcpu-skip-intermediate-roundings=false",
    "--iree-llvmcpu-reassociate-fp-reductions=false",
    "--iree-llvmcpu-target-cpu=x86-64-v3",  # converts float16 in hardware, has no arithmetic of its own to fuse
    "--iree-llvmcpu-link-embedded=false",  # by the system's linker: maxima of float16 call the C library
)
PACKAGES = ("iree-base-compiler", "iree-base-runtime")


def available() -> bool:
    """IREE is installed: the extra `iree`."""
    return importlib.util.find_spec("iree") is not None and importlib.util.find_spec("iree.compiler") is not None


def compile_half(function: Callable, *inputs: jax.ShapeDtypeStruct | np.ndarray | jax.Array) -> Callable:
    """The same function in float16: arrays of float32 go in and come out, integers stay as they are.

    Args:
        inputs: what it is called with, or shapes and types of it.

    Raises:
        ValueError: where IREE is not installed.
    """
    if not available():
        raise ValueError(f"{' and '.join(PACKAGES)} are not installed: pip install -e '.[iree]'")
    # Neither has types for Python.
    import iree.compiler.tools as compiler  # pyright: ignore[reportMissingImports]
    import iree.runtime as runtime  # pyright: ignore[reportMissingImports]

    exported = jax.export.export(jax.jit(function), platforms=["cpu"])(*inputs)
    program = compiler.compile_str(
        exported.mlir_module_serialized, input_type="stablehlo", target_backends=["llvm-cpu"], extra_args=list(FLAGS)
    )
    config = runtime.Config("local-sync")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, program), config)

    def compiled(*arrays: np.ndarray | jax.Array):
        results = module.main(*map(_narrow, arrays))
        return jax.tree.map(_wide, results)

    return compiled


def _narrow(array: np.ndarray | jax.Array) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.float16) if array.dtype == np.float32 else array


def _wide(result: Any) -> np.ndarray:
    array = np.asarray(result)
    return array.astype(np.float32) if array.dtype == np.float16 else array
