"""How a public function picks one of its implementations.

Each operation has a dictionary of them, by name:

    reference   plain JAX: it defines the result
    xla         plain JAX too, written for speed
    mosaic_gpu  a Pallas kernel for NVIDIA GPUs from Hopper on
    mosaic_tpu  a Pallas kernel for TPUs

and calls `dispatch(operation, implementations, implementation, *args, **kwargs)`. All of them take the same arguments.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from kernels.autotune import preferred
from kernels.device import current_device

NAMES = ("reference", "xla", "mosaic_gpu", "mosaic_tpu")
_HOPPER = 9.0


class Unsupported(NotImplementedError):
    """An implementation cannot do what was asked for; the message names the argument and the alternative.

    Raised by an implementation before it does anything else.
    """


def dispatch(
    operation: str, implementations: Mapping[str, Callable], implementation: str | None, *args: Any, **kwargs: Any
) -> Any:
    """The result of one of the implementations.

    Args:
        operation: the name of its folder, under which its measurements are kept.
        implementations: by name, "xla" among them, which supports everything.
        implementation: one of their names, or None: what was measured to be the fastest on this kind of device
            (`kernels.autotune`), and "xla" where nothing was, or where that does not support the arguments.

    Raises:
        Unsupported: a named implementation does not run on this device, or not with these arguments.
        ValueError: there is none of that name.
    """
    if implementation is None:
        name = preferred(operation)
        if name in implementations and _missing_device(name) is None:
            try:
                return implementations[name](*args, **kwargs)
            except Unsupported:
                pass
        return implementations["xla"](*args, **kwargs)
    if implementation not in implementations:
        raise ValueError(
            f"{operation}: implementation={implementation!r} is not one of {', '.join(implementations)}, or None"
        )
    if (missing := _missing_device(implementation)) is not None:
        raise Unsupported(f"{operation}: {missing}; use implementation='xla', or None for what this device supports")
    return implementations[implementation](*args, **kwargs)


def available(implementation: str) -> bool:
    """Whether this device could run it at all."""
    return _missing_device(implementation) is None


def _missing_device(implementation: str) -> str | None:
    """What an implementation needs and does not find."""
    device = current_device()
    nvidia = device.platform == "gpu" and "NVIDIA" in device.kind
    if implementation == "mosaic_gpu" and (not nvidia or 0 < device.capability < _HOPPER):
        return f"implementation='mosaic_gpu' needs an NVIDIA GPU from Hopper on, and this device is {device.kind!r}"
    if implementation == "mosaic_tpu" and device.platform != "tpu":
        return f"implementation='mosaic_tpu' needs a TPU, and this device is {device.kind!r}"
    return None


def deferred(module: str, function: str) -> Callable:
    """A function of a module that is imported when it is first called: Pallas takes long to import."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args, **kwargs)

    return call
