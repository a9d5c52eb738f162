"""Compiles exports for microcontrollers with Arm's Vela: operators, memory and predicted time on Ethos-U.

Two models: the one that is shipped, and one three times as large, for memory alone: its weights are random, its ranges
those of the check's synthetic sound. Vela predicts times by its model of the NPU; nothing runs on one.
"""

import csv
import pathlib
import re
import shutil
import subprocess
import tempfile
from typing import Any

from flax import nnx

from benchmarks import harness
from benchmarks.peers import ROOT
from conformer import record
from conformer.artefacts.card import load_cards
from conformer.artefacts.geometry import Geometry
from conformer.artefacts.loading import load_runtimes
from conformer.config import Config
from conformer.cost import num_parameters
from conformer.export.formats import Task, backend
from conformer.export.pipeline import check_windows
from conformer.model import ConformerCTC

VERSION = "5.2.0"
ENVIRONMENT = ROOT / ".venv-vela"  # of its own: Vela is no dependency of this project
SHIPPED = ROOT / "models" / "words_micro"
LARGER = {"model.encoder_dim": 112, "model.feed_forward_dim": 304}  # for 64 and 160: three times the parameters
SYSTEMS = {"u55": "Ethos_U55_High_End_Embedded", "u85": "Ethos_U85_SYS_Flash_High"}  # 500 MHz, weights in flash
NPUS = ("ethos-u55-128", "ethos-u55-256", "ethos-u85-256", "ethos-u85-512")  # and multiply-accumulates a cycle


class VelaError(ValueError):
    """Vela is missing or refused a model; the message says what to do."""


def run() -> dict:
    """Compiles both models in int8 and int16x8 for every NPU.

    Raises ValueError where Vela or a converter is missing.
    """
    vela, export = find_vela(), backend("tflite-micro").export
    cards = [card for card in load_cards(SHIPPED) if card.format == "tflite-micro"]
    shipped = Config.from_json(SHIPPED / "config.json")
    larger = shipped.replace(LARGER)
    model = ConformerCTC(larger, rngs=nnx.Rngs(0))
    geometry = Geometry.of(larger, model, cards[0].geometry.chunk_size, cards[0].geometry.num_left_chunks)
    framing = geometry.framing(larger.features)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for card in cards:
            path = folder / card.file
            export(Task(larger, model, geometry, card.numerics, path, [check_windows(framing)]))
            rows += _rows(vela, SHIPPED / card.file, card.geometry, shipped, card.numerics)
            rows += _rows(vela, path, geometry, larger, card.numerics)
    chunk_seconds = framing.chunk_size * framing.frame_seconds
    found = {"vela": VERSION, "systems": SYSTEMS, "chunk_seconds": chunk_seconds, "rows": rows}
    return {"models": record.models(SHIPPED)} | found


def _rows(vela: str, path: pathlib.Path, geometry: Geometry, config: Config, numerics: str) -> list[dict[str, Any]]:
    """One row an NPU of a flatbuffer, with what TensorFlow Lite Micro needs for it without one."""
    size = {"num_parameters": num_parameters(config), "numerics": numerics, "file_bytes": path.stat().st_size}
    size["arena_bytes"] = load_runtimes("tflite-micro", path, geometry, config.features)[""].arena_bytes
    return [size | {"npu": npu} | compile_for(vela, path, npu) for npu in NPUS]


def find_vela() -> str:
    """The command. Raises VelaError where there is none, or another version."""
    folder = ENVIRONMENT.name
    make = f"python -m venv {folder} && {folder}/bin/pip install ethos-u-vela=={VERSION}"
    vela = shutil.which("vela", path=ENVIRONMENT / "bin") or shutil.which("vela")
    if vela is None:
        raise VelaError(f"Arm's compiler Vela is missing: {make}")
    found = subprocess.run([vela, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if found != VERSION:
        raise VelaError(f"{vela} is version {found}, not {VERSION}: {make}")
    return vela


def compile_for(vela: str, path: pathlib.Path, npu: str) -> dict[str, Any]:
    """Returns Vela's report on a flatbuffer: operators after its own rewriting, those on the processor, memory, time.

    The time is that of the NPU for a chunk of audio. Raises VelaError where it refuses the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        system = next(system for family, system in SYSTEMS.items() if family in npu)
        flags = f"--accelerator-config={npu}", f"--system-config={system}", "--memory-mode=Shared_Sram"
        done = subprocess.run([vela, path, *flags, f"--output-dir={folder}"], capture_output=True, text=True)
        if done.returncode:
            raise VelaError(f"vela refused {path.name} for {npu}: {done.stdout[-500:]}{done.stderr[-500:]}")
        [summary] = pathlib.Path(folder).glob("*_summary_*.csv")
        with summary.open() as file:
            [figures] = csv.DictReader(file)
    counts = {place: int(n) for place, n in re.findall(r"(CPU|NPU) operators = (\d+)", done.stdout)}
    return {
        "operators": counts["CPU"] + counts["NPU"],
        "cpu_operators": counts["CPU"],
        "cpu_operator_names": re.findall(r"operator: (\w+), ofm", done.stdout + done.stderr),
        "sram_kib": float(figures["sram_memory_used"]),
        "flash_kib": float(figures["off_chip_flash_memory_used"]),
        "npu_seconds": float(figures["inference_time"]),
        "npu_cycles": int(figures["cycles_total"]),
    }


def table(result: dict) -> str:
    """A line a model, precision and NPU."""
    headings = ("parameters", "numerics", "arena", "NPU", "operators", "on the CPU", "SRAM", "flash", "a chunk")
    rows = [
        (
            f"{row['num_parameters'] / 1e6:.2f} M",
            row["numerics"],
            f"{row['arena_bytes'] / 1024:.0f} KiB",
            row["npu"],
            f"{row['operators']}",
            " ".join([f"{row['cpu_operators']}", *sorted(set(row["cpu_operator_names"]))]),
            f"{row['sram_kib']:.0f} KiB",
            f"{row['flash_kib']:.0f} KiB",
            f"{1000 * row['npu_seconds']:.2f} ms",
        )
        for row in result["rows"]
    ]
    return harness.table(headings, rows)
