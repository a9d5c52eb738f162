"""Transcribes audio in a stream, printing the text as it grows.

  python transcribe.py --workdir=runs/demo recording.wav another.flac
  arecord -t raw -f S16_LE -r 16000 -c 1 | python transcribe.py --workdir=runs/demo -
  python transcribe.py --workdir=runs/demo --example

`-` reads 16-bit little-endian PCM, one channel, at the model's rate from standard input.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from conformer import runtime
from conformer.audio import AudioError, load_audio, pcm16_to_float
from conformer.config import ConfigError, parse_flags
from conformer.data import DataError, load_utterances
from conformer.streaming import Recognizer, StreamError
from conformer.tokenizer import TokenizerError
from conformer.training.checkpoint import CheckpointError, load_model

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
CHUNK_SIZE = flags.DEFINE_integer("chunk-size", 16, "Encoder frames recognised at a time.", lower_bound=1)
NUM_LEFT_CHUNKS = flags.DEFINE_integer("num-left-chunks", 4, "Chunks of left context.", lower_bound=0)
REALTIME = flags.DEFINE_bool("realtime", False, "Feed files at the speed of speech.")
EXAMPLE = flags.DEFINE_bool("example", False, "Transcribe an utterance of the test split of the run's own data.")
ONE_CORE = flags.DEFINE_bool("one-core", False, "Use one processor core (Linux).")
JSON = flags.DEFINE_string("json", None, "Also write texts and timings to this file.")

BLOCK_SECONDS = 0.1  # audio fed at a time


def main(arguments: list[str]) -> None:
    if ONE_CORE.value:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    runtime.set_up()
    if len(arguments) < 2 and not EXAMPLE.value:
        sys.exit("transcribe.py: name audio files, - for standard input, or --example (see --help)")
    try:
        config, model, tokenizer, _ = load_model(WORKDIR.value)
    except (ConfigError, TokenizerError, CheckpointError) as error:
        sys.exit(f"transcribe.py: {error}")
    rate = config.features.sample_rate
    records, failed = [], False

    sources: list[tuple[str, np.ndarray | None]] = [(name, None) for name in arguments[1:]]
    if EXAMPLE.value:
        try:
            example = max((u for u in load_utterances(config) if u.split == "test"), key=lambda u: u.duration)
        except (DataError, ValueError) as error:
            sys.exit(f"transcribe.py --example: the run's data has no test split to take one from: {error}")
        sources.append((f"{example.id} ({example.text!r})", example.samples(rate)))
    for name, samples in sources:
        recognizer = Recognizer(
            config, model, tokenizer, chunk_size=CHUNK_SIZE.value, num_left_chunks=NUM_LEFT_CHUNKS.value
        )
        recognizer.warm_up()
        try:
            if name == "-":
                blocks = standard_input(rate)
            else:
                samples = load_audio(name, rate) if samples is None else samples
                blocks = split(samples, int(BLOCK_SECONDS * rate), rate)
            records.append({"source": name} | run(recognizer, blocks, rate))
        except (AudioError, StreamError) as error:
            print(f"transcribe.py: {error}", file=sys.stderr)
            failed = True  # the other files are still transcribed
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(records, indent=2) + "\n")
    sys.exit(1 if failed else 0)


def run(recognizer: Recognizer, blocks: Iterator[np.ndarray], rate: int) -> dict:
    """Feeds a stream and shows its text as it grows; returns text, seconds of audio and of computation."""
    on_terminal, shown = sys.stdout.isatty(), ""
    num_samples, compute = 0, 0.0
    for block in blocks:
        start = time.perf_counter()
        text = recognizer.accept(block)
        compute += time.perf_counter() - start
        num_samples += len(block)
        if text != shown:
            print(
                f"\r\x1b[K{text}" if on_terminal else f"{num_samples / rate:7.2f} s  {text}",
                end="" if on_terminal else "\n",
            )
            sys.stdout.flush()
            shown = text
    start = time.perf_counter()
    text = recognizer.finish()
    compute += time.perf_counter() - start
    print(f"\r\x1b[K{text}" if on_terminal else f"  final    {text}")
    seconds = num_samples / rate
    return {"text": text, "audio_seconds": seconds, "compute_seconds": compute, "rtf": compute / max(seconds, 1e-9)}


def split(samples: np.ndarray, size: int, rate: int) -> Iterator[np.ndarray]:
    """Blocks of a recording, at the speed of speech if asked."""
    start = time.perf_counter()
    for position in range(0, len(samples), size):
        if REALTIME.value:
            time.sleep(max(0.0, start + position / rate - time.perf_counter()))
        yield samples[position : position + size]


def standard_input(rate: int) -> Iterator[np.ndarray]:
    """Blocks of 16-bit PCM until the input ends; half a sample at the end is dropped."""
    while data := sys.stdin.buffer.read(2 * int(BLOCK_SECONDS * rate)):
        yield pcm16_to_float(data[: len(data) // 2 * 2])


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
