"""Costs for a reader: a table of modules, configurations side by side, and drawings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from conformer.charts import bars, together
from conformer.config import Config
from conformer.cost.devices import Device
from conformer.cost.operations import Workload, num_parameters, state_elements
from conformer.cost.predict import Cost, Precision, predict, total


class Report(NamedTuple):
    """One configuration on one device."""

    name: str
    costs: Mapping[str, Cost]  # by module
    seconds: float  # of audio
    parameters: int
    state_bytes: int  # of one stream

    @property
    def all(self) -> Cost:
        return total(self.costs.values())


def report(name: str, config: Config, workload: Workload, device: Device, formats: Precision) -> Report:
    """Returns the costs of `workload` on a device, module by module, and the size of its state."""
    state = state_elements(config, workload) * formats.activations if workload.streaming else 0
    return Report(name, predict(config, workload, device, formats), workload.seconds, num_parameters(config), state)


def module_table(found: Report) -> str:
    """A line a module; energies are of a second of audio."""
    whole = found.all
    lines = [
        f"{'':14}{'MACs':>10}{'share':>8}{'weights':>10}{'activations':>13}{'state':>10}{'ops/byte':>10}{'time':>11}"
        f"{'energy':>11}  bound"
    ]
    for module, cost in [*found.costs.items(), ("all", whole)]:
        intensity = f"{cost.intensity:10.1f}" if cost.bytes_moved else f"{'':10}"
        lines.append(
            f"{module:14}{cost.macs / 1e6:8.1f} M{cost.macs / whole.macs:8.1%}{cost.weight_bytes / 1e6:7.2f} MB"
            f"{cost.activation_bytes / 1e6:10.2f} MB{cost.state_bytes / 1e6:7.2f} MB{intensity}"
            f"{1e3 * cost.seconds:8.3f} ms{1e3 * cost.joules / found.seconds:8.3f} mJ  {cost.bound}"
        )
    lines.append(
        f"{found.parameters:,} parameters; activations held at a time {whole.peak_bytes / 1e6:.2f} MB; state of a "
        f"stream {found.state_bytes / 1e6:.2f} MB; {found.seconds:g} s of audio, real-time factor "
        f"{whole.seconds / found.seconds:.5f}, {1e3 * whole.joules / found.seconds:.3f} mJ a second of audio"
    )
    return "\n".join(lines)


def comparison_table(reports: Sequence[Report]) -> str:
    """A line a configuration."""
    width = max(len(found.name) for found in reports) + 2
    lines = [
        f"{'':{width}}{'parameters':>13}{'MACs/s':>11}{'front end':>11}{'bytes/s':>11}{'real time':>11}{'energy/s':>12}"
    ]
    for found in reports:
        whole = found.all
        lines.append(
            f"{found.name:{width}}{found.parameters / 1e6:11.2f} M{whole.macs / found.seconds / 1e6:9.1f} M"
            f"{found.costs['front end'].macs / whole.macs:11.2%}{whole.bytes_moved / found.seconds / 1e6:8.1f} MB"
            f"{whole.seconds / found.seconds:11.5f}{1e3 * whole.joules / found.seconds:9.3f} mJ"
        )
    return "\n".join(lines)


def shares_chart(reports: Sequence[Report]) -> str:
    """Draws compute, bytes, time and energy of a second of audio: a bar a configuration, a colour a module (SVG)."""
    measures = {
        "multiply-accumulates (M)": lambda cost: cost.macs / 1e6,
        "bytes moved (MB)": lambda cost: cost.bytes_moved / 1e6,
        "time (ms)": lambda cost: 1e3 * cost.seconds,
        "energy (mJ)": lambda cost: 1e3 * cost.joules,
    }
    charts = []
    for label, measure in measures.items():
        rows = {
            found.name: {module: measure(cost) / found.seconds for module, cost in found.costs.items()}
            for found in reports
        }
        charts.append(bars(rows, f"{label} of a second of audio"))
    return together(charts, "where compute, bytes, time and energy go")


def waterfall_chart(reports: Sequence[Report]) -> str:
    """Real-time factor and energy after each step, and what the step took away (SVG)."""
    measures = {
        "real-time factor": [found.all.seconds / found.seconds for found in reports],
        "mJ a second of audio": [1e3 * found.all.joules / found.seconds for found in reports],
    }
    charts = []
    for label, values in measures.items():
        steps = zip([values[0], *values], reports, values, strict=False)
        rows = {found.name: {"left": new, "saved by this step": max(old - new, 0.0)} for old, found, new in steps}
        charts.append(bars(rows, label))
    return together(charts, "real-time factor and energy after each saving")
