"""Time and energy of operations on a device: a roofline for each, and the bound named."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from conformer.config import Config
from conformer.cost.devices import Device
from conformer.cost.operations import Operation, Workload, operations


class Precision(NamedTuple):
    """Bytes of an element, and the format that is multiplied."""

    weights: int
    activations: int  # and state
    compute: str


PRECISIONS = {
    "float32": Precision(4, 4, "float32"),
    "bfloat16": Precision(2, 4, "bfloat16"),  # the numerics policies of these names keep activations in float32
    "int8": Precision(1, 4, "int8"),
    "float16": Precision(2, 2, "float16"),  # a device whose operations all end in it, as edge_fp16
    "float16_int8_weights": Precision(1, 2, "float16"),
    "all_int8": Precision(1, 1, "int8"),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of an operation, or of many together."""

    macs: int = 0
    flops: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0  # read and written
    state_bytes: int = 0  # read and written
    peak_bytes: int = 0  # of activations held at a time
    compute_seconds: float = 0.0
    memory_seconds: float = 0.0
    launch_seconds: float = 0.0
    seconds: float = 0.0
    joules: float = 0.0

    @property
    def bytes_moved(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.state_bytes

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes_moved

    @property
    def bound(self) -> str:
        """The resource that takes longest: "compute", "bandwidth" or "launch"."""
        times = {"compute": self.compute_seconds, "bandwidth": self.memory_seconds, "launch": self.launch_seconds}
        return max(times, key=lambda name: times[name])

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        sums = Cost(*(a + b for a, b in pairs))
        return dataclasses.replace(sums, peak_bytes=max(self.peak_bytes, other.peak_bytes))


def predict(config: Config, workload: Workload, device: Device, formats: Precision) -> dict[str, Cost]:
    """Costs by module, and of the "call" itself. Raises ValueError for a format that the device does not multiply."""
    if formats.compute not in device.matrix_rate:
        known = ", ".join(device.matrix_rate)
        raise ValueError(f"{device.name} multiplies {known} and not {formats.compute}: choose other --formats")
    found = operations(config, workload)
    fits = sum(o.parameters * formats.weights + o.state * formats.activations for o in found) <= device.cache_bytes
    costs: dict[str, Cost] = {}
    for operation in found:
        cost = operation_cost(operation, device, formats, fits)
        costs[operation.module] = costs.get(operation.module, Cost()) + cost
    call = Cost(launch_seconds=device.call_seconds, seconds=device.call_seconds)
    costs["call"] = dataclasses.replace(call, joules=device.watts * device.call_seconds)
    return costs


def operation_cost(operation: Operation, device: Device, formats: Precision, fits: bool) -> Cost:
    """The larger of computing and moving, or their sum where a device does one after the other, and the launch.

    Weights and state come from memory unless they fit the cache (`fits`), activations unless they are larger than it.
    """
    weights = operation.parameters * formats.weights
    activations = (operation.inputs + operation.outputs) * formats.activations
    state = operation.state * formats.activations
    spilled = activations > device.cache_bytes
    from_memory = (0 if fits else weights + state) + (activations if spilled else 0)
    from_cache = weights + activations + state - from_memory
    rate = device.matrix_rate[formats.compute] if operation.matrix else device.depthwise_rate
    compute = 2 * operation.macs / rate
    compute += operation.elementwise / device.vector_rate + operation.transcendental / device.transcendental_rate
    memory = (weights + state) / (device.cache_bandwidth if fits else device.memory_bandwidth)
    if device.overlapped or not compute:  # else the rates of loops are those with what they read and write
        memory += activations / (device.memory_bandwidth if spilled else device.activation_bandwidth)
    seconds = device.launch_seconds + (max(compute, memory) if device.overlapped else compute + memory)
    arithmetic = operation.macs + (operation.elementwise + operation.transcendental) / 2
    joules = arithmetic * device.mac_energy[formats.compute] + seconds * device.watts
    joules += from_memory * device.memory_energy + from_cache * device.cache_energy
    return Cost(
        macs=operation.macs,
        flops=operation.flops,
        parameters=operation.parameters,
        weight_bytes=weights,
        activation_bytes=activations,
        state_bytes=state,
        peak_bytes=operation.live * formats.activations,
        compute_seconds=compute,
        memory_seconds=memory,
        launch_seconds=device.launch_seconds,
        seconds=seconds,
        joules=joules,
    )


def total(costs: Iterable[Cost]) -> Cost:
    """All together."""
    return sum(costs, Cost())
