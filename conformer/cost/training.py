"""A training step on many devices: time, memory, communication and the audio it asks for, predicted; nothing is run.

Counted from the same operations as a chunk's cost. The backward pass takes two products for each one of the forward
pass, so that a step has three times the work of its forward pass. Two views (`train.consistency_weight`) are twice the
rows; the intermediate loss is a second head, and the denominator (`train.mmi_weight`) a scan over frames. Features,
CTC, dropout and SpecAugment are left out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from conformer.config import Config
from conformer.cost.devices import Device
from conformer.cost.operations import Operation, Workload, num_parameters, operations, trained
from conformer.cost.predict import Precision, operation_cost, total
from conformer.data.buckets import make_bucket
from conformer.training.muon import STEPS, is_linear_map

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
# 400 Gb/s for each GPU, as NVIDIA's DGX systems have them; latency assumed. GeForce cards talk over PCIe 4.0 x16; as
# many in a node, a port of 10 Gb/s and the latency are assumed.
INTERCONNECTS = {"h200": Interconnect(8, 450e9, 50e9, 5e-6), "rtx-4090": Interconnect(8, 32e9, 1.25e9, 20e-6)}


class Step(NamedTuple):
    """One training step on some devices. Bytes are of one device."""

    devices: int
    rows: int  # utterances of a device, those that only fill up the batch included
    flops: int  # of a device, forward and backward; the update left out
    compute_seconds: float
    communication_seconds: float  # as if none of it were hidden behind compute
    activation_bytes: int  # kept for the backward pass, of one part of the batch (`train.accumulate`)
    copied_bytes: int  # state and gradients where every device has all of it
    sharded_bytes: int  # where all devices share one copy; parameters are gathered for the step
    audio_seconds: float  # of the batch
    num_steps: int  # of the training

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds

    @property
    def hours(self) -> float:
        """Of the training: as if each batch were of the longest bucket, and nothing waited for data."""
        return self.num_steps * self.seconds / 3600

    @property
    def rate(self) -> float:
        """Audio seconds a second that the input pipeline must deliver to all devices together."""
        return self.audio_seconds / self.seconds


def training_step(config: Config, device: Device, interconnect: Interconnect, devices: int) -> Step:
    """A step on the longest bucket of the configuration, whose batch is shared out among the devices.

    Raises ValueError for a configuration without buckets.
    """
    if not config.data.bucket_seconds:
        raise ValueError("data.bucket_seconds is derived from data, which are not looked at here: name the lengths")
    train = config.train
    bucket = make_bucket(config.data, config.features.sample_rate, config.data.bucket_seconds[-1])
    rows = -(-bucket.batch_size // (devices * train.accumulate))  # of each part
    workload = Workload.utterance(config, bucket.seconds, (2 if train.consistency_weight else 1) * rows)
    parameters = BYTES * num_parameters(config)
    network = operations(config, workload)
    if train.intermediate_weight:
        network += [operation for operation in network if operation.module == "head"]
    sums = denominator(config, workload) if train.mmi_weight else []
    work = WORK * network + (WORK - 1) * sums  # the bigram has no gradient
    update = orthogonalisation(config) if train.optimiser == "muon" else []
    formats = Precision(BYTES, BYTES, train.compute)
    part, moved = (total(operation_cost(o, device, formats, False) for o in found) for found in (work, update))
    passes = UPDATE_PASSES * parameters / device.memory_bandwidth
    return Step(
        devices=devices,
        rows=train.accumulate * rows,
        flops=train.accumulate * part.flops,
        compute_seconds=device.call_seconds + train.accumulate * part.seconds + moved.seconds + passes,
        communication_seconds=interconnect.all_reduce_seconds(parameters, devices),
        activation_bytes=BYTES * sum(operation.outputs for operation in network + sums),
        copied_bytes=(STATE_COPIES + 1) * parameters,
        sharded_bytes=STATE_COPIES * parameters // devices + (1 if devices == 1 else 2) * parameters,
        audio_seconds=bucket.batch_size * bucket.seconds,
        num_steps=train.num_steps,
    )


def denominator(config: Config, workload: Workload) -> list[Operation]:
    """The operations of `log_denominator`: a softmax, then a product with the bigram and two loops in each frame.

    The product is in float32, which no matrix engine multiplies.
    """
    units = config.model.vocab_size
    states = workload.batch_size * units  # of the automaton, for labels and again for blanks

    def loop(name: str, elementwise: int, inputs: int, outputs: int, **counts: Any) -> Operation:
        counts |= {"elementwise": elementwise * states, "inputs": inputs * states, "outputs": outputs * states}
        return Operation("denominator", name, **counts)

    product = loop("product", 0, 1, 1, macs=states * units, parameters=units**2)
    frame = [product, loop("enter", 9, 4, 2), loop("divide", 4, 4, 2)]
    softmax = loop("softmax", 5 * workload.frames, workload.frames, workload.frames, transcendental=states)
    return [softmax, *workload.frames * frame]


def orthogonalisation(config: Config) -> list[Operation]:
    """The products of Muon, which every device computes for all linear maps."""
    found = []
    for rows, columns in (sorted(param.shape) for param in trained(config) if is_linear_map(param)):
        matrix, square = rows * columns, rows * rows
        found += STEPS * [
            Operation("update", "gram", True, macs=rows * matrix, inputs=matrix, outputs=square),
            Operation("update", "square", True, macs=rows * square, inputs=square, outputs=square),
            Operation("update", "step", True, macs=rows * matrix, inputs=matrix + square, outputs=matrix),
        ]
    return found


def training_table(steps: Sequence[Step]) -> str:
    """A line for each number of devices."""
    lines = [
        f"{'devices':>7}{'rows':>6}{'compute':>12}{'all-reduce':>12}{'step':>12}{'activations':>13}"
        f"{'state, copied':>15}{'sharded':>10}{'audio s/s':>12}{'of a device':>13}{'training':>11}"
    ]
    for step in steps:
        lines.append(
            f"{step.devices:7}{step.rows:6}{1e3 * step.compute_seconds:9.1f} ms"
            f"{1e3 * step.communication_seconds:9.1f} ms"
            f"{1e3 * step.seconds:9.1f} ms{step.activation_bytes / 1e9:10.2f} GB{step.copied_bytes / 1e9:12.2f} GB"
            f"{step.sharded_bytes / 1e9:7.2f} GB{step.rate:12,.0f}{step.rate / step.devices:13,.0f}{step.hours:9.1f} h"
        )
    return "\n".join(lines)
