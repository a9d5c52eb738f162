"""Measures examples/device/recognise.c, a program in C: instructions for a second of audio, and memory.

Instructions are counted by valgrind (its processor has AVX2): those for 20 s of noise less those for 10 s, so that the
start does not count. Memory is the largest resident size, with the file of ONNX Runtime's library.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import soundfile

from conformer import record

ROOT = pathlib.Path(__file__).parents[1]
ARTEFACTS = ("onnx_float32.onnx", "onnx_int8.onnx")
SECONDS = (10, 20)
FRONT_END = "log_mel_frame*"


def run() -> dict:
    """Measures both ONNX artefacts of models/words_micro. Raises ValueError where a tool is missing."""
    for tool in ("cc", "valgrind"):
        if shutil.which(tool) is None:
            raise ValueError(f"{tool} is not installed: install the packages gcc and valgrind")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        audio = [_noise(out, seconds) for seconds in SECONDS]
        for name in ARTEFACTS:
            artefact = ROOT / "models" / "words_micro" / name
            command = [sys.executable, str(ROOT / "examples" / "device" / "build.py"), str(artefact), str(out)]
            subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True)
            program = [str(out / "recognise"), str(artefact)]
            rows.append(
                {
                    "artefact": name,
                    "instructions_per_second": _per_second(program, audio),
                    "front_end_instructions_per_second": _per_second(program, audio, f"--toggle-collect={FRONT_END}"),
                    "resident_bytes": _resident_bytes(program, audio[-1]),
                }
            )
    return {"models": record.models(ROOT / "models" / "words_micro"), "rows": rows}


def table(result: dict) -> str:
    """A line an artefact."""
    return "\n".join(
        f"{row['artefact']:<20}{row['instructions_per_second'] / 1e6:8.1f} M instructions a second of audio, "
        f"{row['front_end_instructions_per_second'] / 1e6:.1f} M of them for features; "
        f"{row['resident_bytes'] / 2**20:.1f} MiB resident"
        for row in result["rows"]
    )


def _noise(folder: pathlib.Path, seconds: int) -> pathlib.Path:
    path = folder / f"{seconds}.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.05, seconds * 16_000), 16_000, "PCM_16")
    return path


def _per_second(program: list[str], audio: list[pathlib.Path], *options: str) -> float:
    counts = []
    for path in audio:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *options, *program]
        done = subprocess.run([*command, path], capture_output=True, text=True, check=True)
        counts.append(int(re.findall(r"Collected : (\d+)", done.stderr)[-1]))
    return (counts[1] - counts[0]) / (SECONDS[1] - SECONDS[0])


def _resident_bytes(program: list[str], audio: pathlib.Path) -> int:
    """The most that was resident by the time when the program had read all but what a pipe holds."""
    samples, _ = soundfile.read(audio, dtype="int16")
    with subprocess.Popen([*program, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin
        process.stdin.write(samples.tobytes())
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        process.stdin.close()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
