"""`transcribe.py` as a user meets it: seconds from the command to the first text, and memory after a long recording.

The model has the size of `bench.py streaming` and random weights: it says something all the time, which is the worst
case for everything that could be kept.
"""

import contextlib
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import soundfile

from benchmarks.chunk import CHUNK_SIZE, NUM_LEFT_CHUNKS, benchmark_config
from benchmarks.peers import ROOT
from conformer import system
from conformer.artefacts.formats import ExportError
from conformer.config import Config
from conformer.export.pipeline import export
from conformer.tokenizer import BLANK_SYMBOL, SPACE_SYMBOL, CharTokenizer
from conformer.training.checkpoint import Checkpoints
from conformer.training.state import initial_state

SECONDS = 10  # of the recording whose first text is waited for
CJK = 0x4E00  # where as many characters stand in a row as the vocabulary needs


class Transcription(NamedTuple):
    """The time and memory of one run of the command."""

    first_text: float  # seconds from the start of the process to its first line
    total: float  # seconds until it ended
    peak_memory_mib: float | None  # None where the kernel does not say


class TranscriptionError(ValueError):
    """The command failed; its own message is above."""


def run(runs: int, minutes: int) -> dict:
    """`bench.py transcription`: starts the command `runs` times on 10 s of audio, once before that to compile, and
    compares its memory after one minute and after `minutes`. Then the same start with an export of the model, if the
    packages for it are there.
    """
    result: dict[str, Any] = {"minutes": minutes}
    config = benchmark_config()
    with tempfile.TemporaryDirectory() as name:
        workdir = pathlib.Path(name)
        save_model(workdir, config)
        short, minute, long = (workdir / f"{seconds}.wav" for seconds in (SECONDS, 60, 60 * minutes))
        for path, seconds in {short: SECONDS, minute: 60, long: 60 * minutes}.items():
            save_noise(path, config.features.sample_rate, seconds)
        model = f"--workdir={workdir}"
        result["first_run"] = transcribe(model, short)._asdict()  # compiles, unless a run before has
        result["runs"] = [transcribe(model, short)._asdict() for _ in range(runs)]
        result["one_minute"] = transcribe(model, minute)._asdict()
        result["all_minutes"] = transcribe(model, long)._asdict()
        with contextlib.suppress(ExportError):  # a package is missing
            card = export(workdir, "onnx", "int8", CHUNK_SIZE, NUM_LEFT_CHUNKS, workdir)
            artefact = f"--artefact={workdir / card.file}"
            result["artefact"] = [transcribe(artefact, short)._asdict() for _ in range(runs)]
    return result


def save_model(workdir: pathlib.Path, config: Config) -> None:
    """Writes what a training run leaves behind before its first step."""
    bins, characters = config.features.num_mel_bins, config.model.vocab_size - 2
    CharTokenizer([BLANK_SYMBOL, SPACE_SYMBOL, *map(chr, range(CJK, CJK + characters))]).save(workdir)
    (workdir / "config.json").write_text(config.to_json())
    checkpoints = Checkpoints(workdir)
    checkpoints.save(0, initial_state(config, np.full(bins, 12.0), np.full(bins, 4.0))[1])
    checkpoints.wait()


def save_noise(path: pathlib.Path, sample_rate: int, seconds: int) -> None:
    """Writes a recording whose noise is loud and soft in turn, a second each."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", sample_rate, 1, "PCM_16") as file:
        for second in range(seconds):
            file.write((0.1 if second % 2 == 0 else 0.001) * rng.standard_normal(sample_rate))


def transcribe(model: str, path: pathlib.Path) -> Transcription:
    """Runs the command with the flag that names a model, on a file. Raises TranscriptionError."""
    start = time.perf_counter()
    command = [sys.executable, "-u", "transcribe.py", model, str(path)]
    first_text, memory = None, None
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            first_text = first_text or time.perf_counter() - start
            memory = system.peak_memory_mib(process.pid) or memory  # nothing is left of a process that has ended
    if process.returncode != 0 or first_text is None:
        raise TranscriptionError(f"transcribe.py ended with status {process.returncode}: its own message is above")
    return Transcription(first_text, time.perf_counter() - start, memory)


def table(result: dict) -> str:
    """The record for a reader."""
    lines = [
        f"From the command to the first text of {SECONDS} s of audio: {_starts(result['runs'])}.",
        f"The run before them, which compiles unless an earlier one has: {result['first_run']['first_text']:.2f} s.",
    ]
    if "artefact" in result:
        lines.append(f"With its int8 export to ONNX in the place of JAX: {_starts(result['artefact'])}.")
    minutes, memory = result["minutes"], [result[name]["peak_memory_mib"] for name in ("one_minute", "all_minutes")]
    if None not in memory:
        lines.append(
            f"Most memory held: {memory[0]:.0f} MiB after 1 minute of audio, {memory[1]:.0f} MiB after {minutes} "
            f"({result['all_minutes']['total']:.0f} s of work)."
        )
    return "\n".join(lines)


def _starts(runs: list[dict]) -> str:
    starts = [run["first_text"] for run in runs]
    return f"median {statistics.median(starts):.2f} s, slowest {max(starts):.2f} s of {len(starts)} runs"
