"""Transcribes audio as a stream, showing the text as it grows.

  python transcribe.py --workdir=runs/demo recording.wav another.flac
  python transcribe.py --workdir=runs/demo --output=srt recording.wav > recording.srt
  arecord -t raw -f S16_LE -r 16000 -c 1 | python transcribe.py --workdir=runs/demo -
  python transcribe.py --workdir=runs/demo --example

`-` reads 16-bit little-endian PCM, one channel, at the model's rate from standard input.
"""

import functools
import json
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags

from conformer import runtime
from conformer.audio import AudioError, load_audio, pcm16_to_float
from conformer.config import parse_flags
from conformer.data import DataError, load_utterances
from conformer.decode.greedy import Decoder, GreedyDecoder
from conformer.decode.hotwords import HotWords
from conformer.decode.language_model import NgramModel, ShallowFusion
from conformer.decode.prefix_beam import PrefixBeamDecoder
from conformer.numerics import POLICIES, apply_policy
from conformer.streaming import EndpointConfig, Recognizer, StreamError
from conformer.streaming.subtitles import to_srt, to_vtt
from conformer.tokenizer import Tokenizer
from conformer.training.checkpoint import load_model

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
OUTPUT = flags.DEFINE_enum("output", "txt", ["txt", "json", "srt", "vtt"], "What to print when a source ends.")
CHUNK_SIZE = flags.DEFINE_integer("chunk-size", 16, "Encoder frames recognised at a time.", lower_bound=1)
NUM_LEFT_CHUNKS = flags.DEFINE_integer("num-left-chunks", 4, "Chunks of left context.", lower_bound=0)
NUMERICS = flags.DEFINE_enum("numerics", "float32", list(POLICIES), "Formats and algorithms of the computation.")
BEAM_SIZE = flags.DEFINE_integer("beam-size", 0, "Prefixes of a beam search; 0 = greedy.", lower_bound=0)
LM = flags.DEFINE_string("lm", None, "ARPA n-gram language model of words, for the beam search.")
LM_WEIGHT = flags.DEFINE_float("lm-weight", 0.5, "Weight of its logarithms.")
HOTWORDS = flags.DEFINE_list("hotwords", [], "Phrases for the beam search to prefer, comma separated.")
REALTIME = flags.DEFINE_bool("realtime", False, "Feed files at the speed of speech.")
EXAMPLE = flags.DEFINE_bool("example", False, "Transcribe an utterance of the test split of the run's own data.")
ONE_CORE = flags.DEFINE_bool("one-core", False, "Use one processor core (Linux).")
JSON = flags.DEFINE_string("json", None, "Also write texts and timings to this file.")

BLOCK_SECONDS = 0.1  # audio fed at a time


def main(arguments: list[str]) -> None:
    if ONE_CORE.value:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    runtime.set_up()
    warnings.showwarning = lambda message, *_, **__: print(f"transcribe.py: warning: {message}", file=sys.stderr)
    if len(arguments) < 2 and not EXAMPLE.value:
        sys.exit("transcribe.py: name audio files, - for standard input, or --example (see --help)")
    try:
        config, model, tokenizer, _ = load_model(WORKDIR.value)
        model = apply_policy(model, NUMERICS.value)
        recognizer = Recognizer(
            config,
            model,
            tokenizer,
            chunk_size=CHUNK_SIZE.value,
            num_left_chunks=NUM_LEFT_CHUNKS.value,
            decoder=make_decoder(tokenizer),
            endpoint=EndpointConfig(),
        )
        rate = config.features.sample_rate
        sources: dict[str, Callable[[], Iterator[np.ndarray]]] = {}
        for name in arguments[1:]:
            sources[name] = functools.partial(standard_input if name == "-" else read_file, name, rate)
        if EXAMPLE.value:
            tests = [u for u in load_utterances(config) if u.split == "test"]
            if not tests:
                raise DataError("--example: the run's data has no test split to take an utterance from")
            example = max(tests, key=lambda utterance: utterance.duration)
            sources[f"{example.id} ({example.text!r})"] = lambda: split(example.samples(rate), rate)
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"transcribe.py: {error}")

    recognizer.warm_up()
    records, failed = [], False
    for name, open_source in sources.items():
        recognizer.reset()
        try:
            records.append({"source": name} | run(recognizer, open_source(), rate))
        except (AudioError, StreamError) as error:
            print(f"transcribe.py: {error}", file=sys.stderr)
            failed = True  # the other files are still transcribed
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(records, indent=2) + "\n")
    sys.exit(1 if failed else 0)


def make_decoder(tokenizer: Tokenizer) -> Callable[[], Decoder]:
    """What the flags ask for."""
    if BEAM_SIZE.value == 0:
        if LM.value or HOTWORDS.value:
            raise ValueError("--lm and --hotwords need a beam search: add --beam-size=8")
        return GreedyDecoder
    scorers = []
    if LM.value:
        scorers.append(ShallowFusion(NgramModel.from_arpa(LM.value), tokenizer, unit="word", lm_weight=LM_WEIGHT.value))
    if HOTWORDS.value:
        scorers.append(HotWords(HOTWORDS.value, tokenizer, bonus_per_token=2.0))
    return lambda: PrefixBeamDecoder(BEAM_SIZE.value, scorers=scorers)


def run(recognizer: Recognizer, blocks: Iterator[np.ndarray], rate: int) -> dict:
    """Feeds a stream and shows its text as it grows; returns text, words, and seconds of audio and of computation."""
    show = Display()
    compute, first_text = 0.0, None
    for block in blocks:
        start = time.perf_counter()
        text = recognizer.accept(block)
        compute += time.perf_counter() - start
        if text and first_text is None:
            first_text = recognizer.stream.audio_seconds
        show.partial(recognizer.stream.audio_seconds, text)
    start = time.perf_counter()
    text = recognizer.finish()
    compute += time.perf_counter() - start
    seconds = recognizer.stream.audio_seconds
    record = {
        "text": text,
        "words": [word._asdict() for word in recognizer.words],
        "audio_seconds": seconds,
        "compute_seconds": compute,
        "rtf": compute / seconds if seconds else None,
        "first_text_after_audio_seconds": first_text,
    }
    show.final(text)
    if OUTPUT.value != "txt":
        segments = recognizer.segments
        formats = {"json": lambda: json.dumps(record), "srt": lambda: to_srt(segments), "vtt": lambda: to_vtt(segments)}
        print(formats[OUTPUT.value](), flush=True)
    return record


class Display:
    """Text as it grows: rewritten in place on a terminal, a line for each change elsewhere.

    On standard error unless the output is plain text, so that subtitles and JSON can be piped.
    """

    def __init__(self):
        self._file = sys.stdout if OUTPUT.value == "txt" else sys.stderr
        self._on_terminal, self._shown = self._file.isatty(), ""

    def partial(self, seconds: float, text: str) -> None:
        """Shows the text so far, if it has changed."""
        if text == self._shown:
            return
        self._shown = text
        if self._on_terminal:
            width = os.get_terminal_size(self._file.fileno()).columns - 1
            print(f"\r\x1b[K{text[-width:]}", end="", file=self._file, flush=True)
        else:
            print(f"{seconds:7.2f} s  {text}", file=self._file, flush=True)

    def final(self, text: str) -> None:
        """Shows the whole text."""
        print(f"\r\x1b[K{text}" if self._on_terminal else f"    final  {text}", file=self._file, flush=True)


def read_file(path: str, rate: int) -> Iterator[np.ndarray]:
    """Blocks of a recording."""
    return split(load_audio(path, rate), rate)


def split(samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    """Blocks of samples, at the speed of speech if asked."""
    size, start = int(BLOCK_SECONDS * rate), time.perf_counter()
    for position in range(0, len(samples), size):
        if REALTIME.value:
            time.sleep(max(0.0, start + (position + size) / rate - time.perf_counter()))
        yield samples[position : position + size]


def standard_input(_: str, rate: int) -> Iterator[np.ndarray]:
    """Blocks of 16-bit PCM until the input ends or is interrupted; half a sample at its end is dropped."""
    try:
        while data := sys.stdin.buffer.read(2 * int(BLOCK_SECONDS * rate)):
            yield pcm16_to_float(data[: len(data) // 2 * 2])
    except KeyboardInterrupt:
        pass  # what has been heard is still recognised


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
