"""`bench.py kernels`: every contestant in every case, and the figures that follow."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.kernels import figures
from benchmarks.kernels.cases import Case, SelectionError, select
from benchmarks.kernels.contestants import COPY, TORCH, kernel_here, names
from benchmarks.kernels.figures import table as table
from benchmarks.kernels.processes import TORCH_WORKER, WORKER, Processes, fingerprint, share_device
from conformer import record
from kernels.device import current_device
from kernels.implementation import NAMES, available

SMALL = ("stream_words", "train_words")  # what a CPU measures unless told otherwise
STEP_SECONDS = 500.0


def run(
    operation: str | None,
    shape: str | None,
    format: str | None,
    implementation: str | None,
    file: str | None = None,
    processes: Callable[..., Any] = Processes,
) -> dict[str, Any]:
    """Measures the cases that the flags leave; with `implementation`, that one alone and no other library.

    Args:
        file: takes the record after every row; rows that it holds already, of the same kernels on the same device, are
            not measured again.
    """
    share_device()
    if operation == "training_step":
        with processes(STEP_SECONDS) as alone:
            step = alone.ask("", "training_step")
        return {"figures": [], "training_step": {"text": f"no figure: {step.get('skipped')}"} | step}
    device, cases = current_device(), select(operation, shape, format)
    if device.platform == "cpu" and shape is None:
        cases = [case for case in cases if case.shape in SMALL]
    if implementation not in (None, *NAMES):
        raise SelectionError(f"--implementation={implementation} is not one of {', '.join(NAMES)}")
    chosen = {case: [n for n in names(case) if implementation in (None, n) or n == COPY] for case in cases}
    result = {"accelerator": {"kind": device.kind, "capability": device.capability}, "fingerprint": fingerprint()}
    result = record.describe_run() | result | {"rows": [], "attention_memory": {}}
    result |= _kept(file, result["fingerprint"])
    with processes() as contestants:
        if "rates" not in result:
            result["rates"] = contestants.ask(COPY, "rates")
        bounds = result["rates"]
        if "skipped" in bounds:
            raise ValueError(f"this device's rates could not be measured: {bounds['skipped']}")
        print(
            f"{device.kind}: copies {bounds['copy_bytes_per_second'] / 1e9:.1f} GB/s, multiplies matrices at "
            f"{bounds['operations_per_second'] / 1e12:.2f} T operations/s (bfloat16)\n"
            f"copy: of 1 GiB; equal: of the same bytes; (cached): inputs that stay in the caches\n\n{HEADER}",
            flush=True,
        )
        known = {(*(row[name] for name in Case._fields), row["contestant"]): row for row in result["rows"]}
        # A contestant's process serves all its cases, and no two are alive at once: memory is its own.
        for name in dict.fromkeys(name for found in chosen.values() for name in found):
            for case in (case for case, found in chosen.items() if name in found):
                if (*case, name) not in known:
                    known[*case, name] = _row(case, name, contestants)
                    result["rows"] = list(known.values())
                    if file:
                        record.write(file, result)
                print(line(known[*case, name], bounds, known[*case, COPY]), flush=True)
        if shape is None and operation in (None, "chunked_attention") and (kernel := kernel_here()):
            for case in figures.memory_cases():
                if "bytes" in (needed := contestants.ask(kernel, "memory", contestant=kernel, case=case)):
                    result["attention_memory"][case.shape] = needed["bytes"]
    return result | {"figures": figures.compute(result["rows"], bounds)}


def _kept(file: str | None, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run has left in the file, if it would measure the same."""
    try:
        found = json.loads(pathlib.Path(file).read_text()) if file else {}
    except (OSError, ValueError):
        return {}
    return {name: found[name] for name in ("rows", "rates")} if found.get("fingerprint") == fingerprint else {}


def _row(case: Case, name: str, contestants: Processes) -> dict[str, Any]:
    """What a contestant does in a case, in a process of its own."""
    device = current_device()
    if name in NAMES and not available(name):
        outcome = {"skipped": f"needs another device than {device.kind}"}
    elif name in TORCH[case.operation]:
        request = case._asdict() | {"sizes": case.sizes._asdict(), "platform": device.platform}
        outcome = contestants.ask(name, "time", module=TORCH_WORKER, contestant=name, **request)
    else:
        outcome = contestants.ask(name, "time", module=WORKER, contestant=name, case=case)
    row = {"contestant": name, "bytes": case.bytes, "operations": case.operations, "seconds": None, "skipped": None}
    return case._asdict() | row | outcome


HEADER = (
    f"{'operation':<30}{'shape':<18}{'format':<10}{'direction':<10}{'contestant':<16}"
    f"{'us':>10}{'of copy':>9}{'of equal':>9}{'of matrix':>10}"
)


def line(row: dict[str, Any], bounds: dict[str, float], equal: dict[str, Any]) -> str:
    """One line of the table: the time, and the shares of the device's own rates."""
    name = row["operation"] + (f", {row['variant']}" if row["variant"] else "")
    start = f"{name:<30}{row['shape']:<18}{row['format']:<10}{row['direction']:<10}{row['contestant']:<16}"
    if row["seconds"] is None:
        return f"{start}  {row['skipped']}"
    copied = row["bytes"] / row["seconds"] / bounds["copy_bytes_per_second"]
    as_copied = f"{equal['seconds'] / row['seconds']:.0%}" if equal["seconds"] else ""
    multiplied = row["operations"] / row["seconds"] / bounds["operations_per_second"]
    shares = f"{copied:9.0%}{as_copied:>9}" + (f"{multiplied:10.0%}" if multiplied else " " * 10)
    return f"{start}{row['seconds'] * 1e6:10.1f}{shares}{'  (cached)' if row['cached'] else ''}".rstrip()
