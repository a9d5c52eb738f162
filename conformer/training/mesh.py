"""Places a run's arrays on several devices: the one mesh, and the place of state, batch and random bits on it.

The mesh has two axes, ("data", "fsdp"). Rows of a batch are spread over both, so that every device computes on rows of
its own. The state is spread over "fsdp" alone, and copied along "data": with fsdp=1 each device holds all of it (data
parallel), with as many as there are devices each holds one share (fully sharded: Rajbhandari et al., 2020, "ZeRO",
stage 3). XLA derives the communication from these places. On one device every function here returns what it is given.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import random as jax_random
from jax.lax import with_sharding_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from conformer.config import Config, ConfigError
from conformer.data import Batch, Share
from kernels.typing import Array, Key

AXES = ("data", "fsdp")
SMALLEST_SPREAD = 1_024  # values; an array of fewer is copied to every device, which costs less than to gather it


def make_mesh(fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ("data", "fsdp") over `devices`, all there are by default; `fsdp` of them share one copy of the state.

    Raises ConfigError where it does not divide their number, or processes have different numbers of them.
    """
    devices = jax.devices() if devices is None else devices
    owned = collections.Counter(device.process_index for device in devices)
    if len(set(owned.values())) > 1:
        raise ConfigError(f"the processes of a run must have as many devices each, not {sorted(owned.values())}")
    if len(devices) % fsdp:
        raise ConfigError(
            f"train.fsdp={fsdp} does not divide the {len(devices)} devices that there are: choose one of "
            + ", ".join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        )
    return Mesh(np.array(devices).reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def partitionable(config: Config, mesh: Mesh) -> Config:
    """The configuration of a model that XLA can partition: Pallas kernels are opaque to it.

    Raises ConfigError where those are asked for by name.
    """
    if mesh.size == 1:
        return config
    if config.model.kernels.startswith("mosaic"):
        raise ConfigError(
            f"model.kernels={config.model.kernels!r} runs on one device, and there are {mesh.size}: "
            "set it to 'xla', or leave it empty"
        )
    model = dataclasses.replace(config.model, kernels=config.model.kernels or "xla")
    return dataclasses.replace(config, model=model)


def place_state(mesh: Mesh, state: Any) -> Any:
    """Arrays of a state at their places on the mesh."""
    return state if mesh.size == 1 else jax.device_put(state, _state_shardings(mesh, state))


def share_of(mesh: Mesh, accumulate: int) -> Share:
    """The rows of each batch that this process reads: those of its own devices."""
    return Share(jax.process_index(), jax.process_count(), mesh.size, accumulate)


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """A batch with its rows spread over the mesh, from those of this process (`share_of`)."""
    if mesh.size == 1:
        return batch
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    return Batch(*(jax.make_array_from_process_local_data(sharding, array) for array in batch))


def keep_in_place(mesh: Mesh, state: Any) -> Any:
    """Keeps the state, or gradients, where `place_state` puts them; for use inside a compiled function."""
    return state if mesh.size == 1 else with_sharding_constraint(state, _state_shardings(mesh, state))


def on_this_process(mesh: Mesh, tree: Any) -> Any:
    """Arrays of a state as this process's own, in full: to compute with them what others need not compute too."""
    if mesh.size == 1:
        return tree
    whole = jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(lambda array: array.addressable_data(0), whole)


def gather(mesh: Mesh, params: Any) -> Any:
    """Gathers all parameters on every device, to compute its rows with; for use inside a compiled function."""
    return params if mesh.size == 1 else with_sharding_constraint(params, NamedSharding(mesh, PartitionSpec()))


def random_key(mesh: Mesh, seed: int) -> Key[Array, ""]:
    """A key whose draws do not depend on the number of devices.

    XLA's own generator ("rbg") gives other bits where its result is partitioned. So each device draws those of all rows
    and uses its share: the work of one device, on each.
    """
    rbg = jax_random.rbg_prng_impl
    if mesh.size == 1:
        return jax.random.key(seed, impl="rbg")
    whole = jax_random.define_prng_impl(
        key_shape=rbg.key_shape,
        seed=rbg.seed,
        split=rbg.split,
        random_bits=lambda key, bit_width, shape: gather(mesh, rbg.random_bits(key, bit_width, shape)),
        fold_in=rbg.fold_in,
        name="whole_rbg",
        tag="whole_rbg",
    )
    return jax.random.key(seed, impl=whole)


def _state_shardings(mesh: Mesh, state: Any) -> Any:
    """Each array along its largest axis that "fsdp" divides; small ones, and those without such an axis, copied."""

    def sharding(array: Array) -> NamedSharding:
        fsdp = mesh.shape["fsdp"]
        axes = [axis for axis, size in enumerate(array.shape) if size % fsdp == 0]
        if fsdp == 1 or not axes or array.size < SMALLEST_SPREAD:
            return NamedSharding(mesh, PartitionSpec())
        spread = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == spread else None for axis in range(spread + 1))))

    return jax.tree.map(sharding, state)
