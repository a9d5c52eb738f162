"""A training step on many devices: time, memory, communication and the audio it asks for, predicted; nothing is run.

Counted from the same operations as a chunk's cost. The backward pass takes two products for each one of the forward
pass, so that a step has three times the work of its forward pass. Features, CTC, dropout and SpecAugment are left out.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from conformer.config import Config
from conformer.cost.devices import Device
from conformer.cost.operations import Workload, num_parameters, operations
from conformer.cost.predict import Precision, predict, total
from conformer.data.buckets import make_bucket

BYTES = 4  # of a parameter, its average, its two moments under AdamW, a gradient, an activation: float32
STATE_COPIES = 4  # the first four of those; Muon keeps one moment of a matrix in place of two
UPDATE_PASSES = 2 * STATE_COPIES + 1  # all read and written, and the gradient read
WORK = 3  # forward, and the gradients of inputs and of weights


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """The network between devices: one link joins those of a node, a network port for each device joins the nodes."""

    devices_in_node: int
    node_bandwidth: float  # bytes a second in each direction, of a device
    network_bandwidth: float  # the same, between nodes
    latency: float  # seconds of each of the steps of a ring

    def all_reduce_seconds(self, size: int, devices: int) -> float:
        """Sums `size` bytes of each device: scattered in a node, around a ring of nodes, and gathered again.

        Gathering parameters and scattering their gradients, as a sharded state does, moves as many bytes.
        """
        local = min(devices, self.devices_in_node)
        nodes = -(-devices // local)
        seconds = 2 * (local - 1) / local * size / self.node_bandwidth
        seconds += 2 * (nodes - 1) / nodes * (size / local) / self.network_bandwidth
        return seconds + 2 * (local - 1 + nodes - 1) * self.latency


# An HGX H200: eight GPUs, 900 GB/s of NVLink each, both directions together (NVIDIA, data sheet of the H200). A port of
# 400 Gb/s for each GPU, as NVIDIA's DGX systems have them; latency assumed.
INTERCONNECTS = {"h200": Interconnect(8, 450e9, 50e9, 5e-6)}


class Step(NamedTuple):
    """One training step on some devices. Bytes are of one device."""

    devices: int
    rows: int  # utterances of a device, those that only fill up the batch included
    flops: int  # of a device, forward and backward; the update left out
    compute_seconds: float
    communication_seconds: float  # as if none of it were hidden behind compute
    activation_bytes: int  # kept for the backward pass
    copied_bytes: int  # state and gradients where every device has all of it
    sharded_bytes: int  # where all devices share one copy; parameters are gathered for the step
    audio_seconds: float  # of the batch

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds

    @property
    def rate(self) -> float:
        """Audio seconds a second that the input pipeline must deliver to all devices together."""
        return self.audio_seconds / self.seconds


def training_step(config: Config, device: Device, interconnect: Interconnect, devices: int) -> Step:
    """A step on the longest bucket of the configuration, whose batch is shared out among the devices.

    Raises ValueError for a format that the device does not multiply, and for a configuration without buckets.
    """
    if not config.data.bucket_seconds:
        raise ValueError("data.bucket_seconds is derived from data, which are not looked at here: name the lengths")
    bucket = make_bucket(config.data, config.features.sample_rate, config.data.bucket_seconds[-1])
    rows = -(-bucket.batch_size // devices)
    workload = Workload.utterance(config, bucket.seconds, rows)
    parameters = BYTES * num_parameters(config)
    found = operations(config, workload)
    costs = predict(config, workload, device, Precision(BYTES, BYTES, config.train.compute))
    call = costs.pop("call").seconds
    update = UPDATE_PASSES * parameters / device.memory_bandwidth
    return Step(
        devices=devices,
        rows=rows,
        flops=WORK * sum(operation.flops for operation in found),
        compute_seconds=call + WORK * total(costs.values()).seconds + update,
        communication_seconds=interconnect.all_reduce_seconds(parameters, devices),
        activation_bytes=BYTES * sum(operation.outputs for operation in found),
        copied_bytes=(STATE_COPIES + 1) * parameters,
        sharded_bytes=STATE_COPIES * parameters // devices + (1 if devices == 1 else 2) * parameters,
        audio_seconds=bucket.batch_size * bucket.seconds,
    )


def training_table(steps: Sequence[Step]) -> str:
    """A line for each number of devices."""
    lines = [
        f"{'devices':>7}{'rows':>6}{'compute':>12}{'all-reduce':>12}{'step':>12}{'activations':>13}"
        f"{'state, copied':>15}{'sharded':>10}{'audio s/s':>12}{'of a device':>13}"
    ]
    for step in steps:
        lines.append(
            f"{step.devices:7}{step.rows:6}{1e3 * step.compute_seconds:9.1f} ms"
            f"{1e3 * step.communication_seconds:9.1f} ms"
            f"{1e3 * step.seconds:9.1f} ms{step.activation_bytes / 1e9:10.2f} GB{step.copied_bytes / 1e9:12.2f} GB"
            f"{step.sharded_bytes / 1e9:7.2f} GB{step.rate:12,.0f}{step.rate / step.devices:13,.0f}"
        )
    return "\n".join(lines)
