"""Preparing a corpus and reading it: audio seconds a second of one core, file sizes, and memory by corpus size.

Each task runs in a process of its own (`python -m benchmarks.data`), so that its memory is its own. Rates count the
processor's time, of all threads: what other work took meanwhile is no part of it.
"""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import tracemalloc
from typing import Any

import numpy as np
import soundfile

from benchmarks import harness
from benchmarks.peers import ROOT
from configs import libri_mini
from conformer import record, system
from conformer.audio import float_to_pcm16
from conformer.config import AugmentConfig
from conformer.data import Corpus, DataError, load_manifest, texts_of
from conformer.data.prepare import fill, finish
from conformer.data.records import FORMAT, SUMMARY
from conformer.data.worklists import Settings, make_work_lists
from conformer.tokenizer import train_tokenizer
from conformer.training.run import make_loader

RATE = 16_000
SIZES = (10_000, 100_000)  # utterances of the generated corpora
SHORT_SECONDS = (0.3, 1.0)  # of their utterances
FILES = 500  # audio files that those share
PAYLOADS = 100  # utterances that payloads are compared on
BATCHES = 60
MANY_SHARDS = 10_000  # of 20 hours, each with 6,000 utterances


def run(source: str) -> dict:
    """`bench.py data`: speed on the real speech of `source`, as it is and as FLAC; memory on generated corpora."""
    versions = record.versions("numpy", "soundfile", "soxr", "array_record", "grain", "jax")
    versions |= {"libsndfile": soundfile.__libsndfile_version__}
    result: dict[str, Any] = {"versions": versions, "source": source}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        result["payloads"] = payloads(source)
        result["prepare"] = {"source": task("prepare", source, folder / "source")}
        write_flac(folder / "source", folder / "flac")
        result["prepare"]["flac"] = task("prepare", folder / "flac" / "manifest.jsonl", folder / "from_flac")
        result["read"] = {kind: task("read", folder / "source", kind) for kind in ("plain", "augmented")}
        result["sizes"] = []
        for size in SIZES:
            generate(folder / str(size), size)
            prepared = folder / f"prepared_{size}"
            row = {"utterances": size, "prepare": task("prepare", folder / str(size) / "manifest.jsonl", prepared)}
            result["sizes"].append(row | {"read": task("read", prepared, "short")})
        result["many_shards"] = task("open", folder)
    return result


def task(*arguments: object) -> dict:
    """Runs a task in another process. Raises DataError if that fails."""
    command = [sys.executable, "-m", "benchmarks.data", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DataError(f"{' '.join(command[2:])} ended with status {done.returncode}: its own message is above")
    return json.loads(done.stdout.splitlines()[-1])


# ----------------------------------------------------------------------- tasks


def prepare(source: str, folder: str) -> dict:
    """Prepares a corpus with one process."""
    wall, cpu = time.perf_counter(), time.process_time()
    lists = make_work_lists(Settings(source), pathlib.Path(folder))
    planned = time.process_time() - cpu
    for _ in fill(lists):
        pass
    summary = finish(lists)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    seconds = 3600 * summary["hours"]
    return {
        "utterances": summary["utterances"],
        "hours": summary["hours"],
        "bytes": summary["bytes"],
        "cpu_seconds": cpu,
        "of_which_work_lists": planned,
        "wall_seconds": wall,
        "times_real_time_per_core": seconds / cpu,
        "utterances_a_second_per_core": summary["utterances"] / cpu,
        "peak_memory_mib": system.peak_memory_mib(),
    }


def read(folder: str, kind: str) -> dict:
    """Batches for training, as `train.py` gets them."""
    config = libri_mini.get_config().replace({"data.curriculum_steps": 0})
    if kind == "short":
        config = config.replace({"data.bucket_seconds": (0.5, 1.0), "data.batch_seconds": 64.0})
    if kind != "augmented":
        config = dataclasses.replace(config, augment=AugmentConfig())
    wall, corpus = time.perf_counter(), Corpus(folder)
    loader = make_loader(config, corpus, train_tokenizer(config.tokenizer, texts_of(corpus)))
    cpu, seconds, first = time.process_time(), 0.0, None
    for _, batch in loader.batches(0, BATCHES):
        first = first or time.perf_counter() - wall
        seconds += float(batch.audio_lengths @ batch.weights) / config.features.sample_rate
    cpu = time.process_time() - cpu
    return {
        "utterances": loader.num_utterances,
        "audio_seconds": seconds,
        "audio_seconds_a_second_per_core": seconds / cpu,
        "seconds_to_first_batch": first,
        "rows_left_empty": loader.left_empty.total(),
        "peak_memory_mib": system.peak_memory_mib(),
    }


def open_many_shards(folder: str) -> dict:
    """Measures the opening of a corpus of 200,000 hours, whose summary is made up: seconds and peak memory."""
    shard = {"split": "train", "utterances": 6_000, "seconds": 72e3, "bytes": 1, "sha256": "0" * 64}
    shards = [
        shard | {"name": f"train-{i:05}", "steps": [[i // 50, 3_000, 36e3], [i // 50 + 1, 3_000, 36e3]]}
        for i in range(MANY_SHARDS)
    ]
    path = pathlib.Path(folder) / SUMMARY
    path.write_text(json.dumps({"format": FORMAT, "splits": {"train": {}}, "shards": shards}))
    start = time.process_time()
    corpus = Corpus(folder)
    seconds = time.process_time() - start
    tracemalloc.start()  # which slows it: hence again
    corpus = Corpus(folder)
    _, peak = tracemalloc.get_traced_memory()
    return {
        "shards": MANY_SHARDS,
        "utterances": len(corpus),
        "summary_bytes": path.stat().st_size,
        "seconds_to_open": seconds,
        "peak_mib_of_opening": round(peak / 2**20, 1),
    }


# ---------------------------------------------------------------------- inputs


def payloads(source: str) -> dict:
    """Speed and size of what a record could hold: PCM, and FLAC at three levels."""
    utterances = load_manifest(source)
    utterances = [utterances[i] for i in np.linspace(0, len(utterances) - 1, PAYLOADS).astype(int)]
    samples = [float_to_pcm16(utterance.samples(RATE)) for utterance in utterances]
    seconds, size = sum(map(len, samples)) / RATE, 2 * sum(map(len, samples))
    rows = {}
    for name, level in {"pcm": None, "flac 0": 0.0, "flac 4": 0.5, "flac 8": 1.0}.items():
        start = time.process_time()
        encoded = [s.tobytes() if level is None else encode_flac(s, level) for s in samples]
        encoding = time.process_time() - start
        start = time.process_time()
        for data in encoded:
            if level is None:
                np.frombuffer(data, np.int16).astype(np.float32)
            else:
                soundfile.read(io.BytesIO(data), dtype="float32")
        decoding = time.process_time() - start
        share = sum(map(len, encoded)) / size
        rows[name] = {"encoded": seconds / encoding, "decoded": seconds / decoding, "size": share}
    return rows


def encode_flac(samples: np.ndarray, level: float) -> bytes:
    """FLAC; `level` is libsndfile's, eighths of which are FLAC's."""
    audio = io.BytesIO()
    soundfile.write(audio, samples, RATE, format="FLAC", subtype="PCM_16", compression_level=level)
    return audio.getvalue()


def write_flac(prepared: pathlib.Path, folder: pathlib.Path) -> None:
    """A manifest of FLAC files, as LibriSpeech comes, from a prepared corpus."""
    (folder / "audio").mkdir(parents=True)
    with (folder / "manifest.jsonl").open("w") as manifest:
        for utterance in Corpus(prepared):
            audio = folder / "audio" / f"{utterance.id}.flac"
            soundfile.write(audio, utterance.samples(RATE), RATE, subtype="PCM_16")
            row = dataclasses.asdict(dataclasses.replace(utterance, audio=None)) | {"audio": str(audio)}
            manifest.write(json.dumps(row) + "\n")


def generate(folder: pathlib.Path, size: int) -> None:
    """A manifest of `size` short utterances of noise, which share FILES files, in one split."""
    folder.mkdir()
    rng, durations = np.random.default_rng(0), []
    for index in range(FILES):
        samples = float_to_pcm16(0.1 * rng.standard_normal(round(rng.uniform(*SHORT_SECONDS) * RATE)))
        durations.append(len(samples) / RATE)
        soundfile.write(folder / f"{index}.wav", samples, RATE)
    words = ["".join(rng.choice(list("abcdefghij"), 3)) for _ in range(1000)]
    with (folder / "manifest.jsonl").open("w") as manifest:
        for index in range(size):
            row = {"id": f"u{index:09}", "audio": f"{index % FILES}.wav", "duration": durations[index % FILES]}
            text = words[int(rng.integers(len(words)))]
            manifest.write(json.dumps(row | {"text": text, "speaker": f"s{index % 1000}", "split": "train"}) + "\n")


def table(result: dict) -> str:
    """The record for a reader."""
    payloads = [
        (name, f"{row['encoded']:.0f}x", f"{row['decoded']:.0f}x", f"{row['size']:.0%}")
        for name, row in result["payloads"].items()
    ]
    lines = [harness.table(("payload", "encoded", "decoded", "of PCM's size"), payloads)]
    for name, row in result["prepare"].items():
        lines.append(
            f"prepared from {name}: {row['times_real_time_per_core']:.0f} times real time per core, "
            f"{row['bytes'] / row['hours'] / 1e6:.0f} MB an hour, {row['peak_memory_mib']:.0f} MiB"
        )
    for name, row in result["read"].items():
        rate = row["audio_seconds_a_second_per_core"]
        lines.append(f"read, {name}: {rate:.0f} audio seconds a second per core, {row['peak_memory_mib']:.0f} MiB")
    sizes = [
        (
            f"{row['utterances']:,}",
            f"{row['prepare']['peak_memory_mib']:.0f}",
            f"{row['prepare']['utterances_a_second_per_core']:.0f}",
            f"{row['read']['peak_memory_mib']:.0f}",
            f"{row['read']['seconds_to_first_batch']:.2f} s",
        )
        for row in result["sizes"]
    ]
    lines.append(harness.table(("utterances", "prepared, MiB", "a second", "read, MiB", "first batch"), sizes))
    many = result["many_shards"]
    lines.append(
        f"{many['utterances']:,} utterances in {many['shards']:,} shards are opened in {many['seconds_to_open']:.2f} s "
        f"and {many['peak_mib_of_opening']:.0f} MiB"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps({"prepare": prepare, "read": read, "open": open_many_shards}[sys.argv[1]](*sys.argv[2:])))
