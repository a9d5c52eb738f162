"""The device that a kernel is traced for: this process's, or one that it is only interpreted on or lowered for."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, get_abstract_mesh, use_abstract_mesh

_ABSTRACT = {
    "gpu": AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu"),
    "tpu": AbstractDevice(device_kind="TPU v6e", num_cores=1, platform="tpu"),
}
_PLATFORMS = {"mosaic_gpu": "gpu", "mosaic_tpu": "tpu"}
_interpreted = jax.make_user_context(None)  # part of the key of jit's cache, unlike a variable of our own


@dataclasses.dataclass(frozen=True)
class Device:
    """Args:
    platform: "cpu", "gpu" or "tpu".
    kind: as the vendor calls it, such as "NVIDIA H200".
    capability: CUDA's compute capability, 9.0 for Hopper; 0 where it is unknown or has no meaning.
    """

    platform: str
    kind: str
    capability: float = 0.0


def current_device() -> Device:
    """That of the interpreter (`interpreted`) or of the lowering (`lowered_for`) under way, or of this process."""
    if (name := _interpreted.value) is not None:
        return _described(_ABSTRACT[_PLATFORMS[name]])
    if (abstract := get_abstract_mesh().abstract_device) is not None:
        return _described(abstract)
    chosen = jax.config.jax_default_device  # a device, the name of a platform, or None
    return _described(chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0])


def _described(device: Any) -> Device:
    capability = str(getattr(device, "compute_capability", 0))  # AMD's is no number
    return Device(device.platform, device.device_kind, float(capability) if capability[0].isdigit() else 0.0)


@contextlib.contextmanager
def interpreted(implementation: str, **options) -> Iterator[None]:
    """Inside, kernels of "mosaic_gpu" or "mosaic_tpu" run on the CPU, in the interpreter of their back end.

    Args:
        options: of `plgpu.InterpretGPUParams` or `pltpu.InterpretParams`, such as detect_races=True.
    """
    if implementation == "mosaic_gpu":
        from jax.experimental.pallas import mosaic_gpu as plgpu

        interpreter = plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**options))
    else:
        from jax.experimental.pallas import tpu as pltpu

        interpreter = pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(**options))
    with _interpreted(implementation), interpreter:
        yield


def is_interpreted() -> bool:
    """Whether a kernel that is traced now runs in an interpreter."""
    return _interpreted.value is not None


@contextlib.contextmanager
def lowered_for(implementation: str) -> Iterator[str]:
    """Inside, functions are traced for an accelerator that need not be there (an H200 or a TPU v6e).

    Yields the platform to lower for:

        with lowered_for("mosaic_gpu") as platform:
            jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,))
    """
    platform = _PLATFORMS[implementation]
    mesh = AbstractMesh((1,), ("_",), (AxisType.Explicit,), abstract_device=_ABSTRACT[platform])
    with use_abstract_mesh(mesh):
        yield {"gpu": "cuda", "tpu": "tpu"}[platform]
