"""Transcribes audio as a stream, showing the text as it grows.

  python transcribe.py recording.wav                 (read English, by models/english_small)
  python transcribe.py --workdir=runs/demo recording.wav another.flac
  python transcribe.py --artefact=exported/onnx_int8.onnx recording.wav      (without JAX)
  python transcribe.py --workdir=runs/demo --output=srt --out-dir=subtitles *.wav
  arecord -t raw -f S16_LE -r 16000 -c 1 | python transcribe.py --workdir=runs/demo -
  python transcribe.py --workdir=runs/demo --microphone
  python transcribe.py --workdir=runs/demo --example

`-` reads standard input: an audio file, or else 16-bit little-endian PCM of one channel at the model's rate. Ctrl-C
ends a source: what has been heard is still recognised. A source may last for any time.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
from absl import flags

from conformer import system
from conformer.audio import AudioError, read_audio
from conformer.command import run_command
from conformer.config import Config
from conformer.decode.search import check_nbest
from conformer.model_flags import ModelFlags
from conformer.streaming import Recognizer, Segment, StreamError
from conformer.streaming.outputs import Writer, output_paths
from conformer.streaming.sources import BLOCK_SECONDS, pace, read_pcm, record_microphone

NO_DATA = "an artefact has no data to take one from; name a file, or give --workdir"
MODEL = ModelFlags(unfit={"example": NO_DATA})
OUTPUTS = ["txt", "words", "json", "srt", "vtt"]
OUTPUT = flags.DEFINE_enum("output", "txt", OUTPUTS, "What to write of a segment that has ended.")
OUT_DIR = flags.DEFINE_string("out-dir", None, "Folder to write that to, a file for each source; default: print it.")
NBEST = flags.DEFINE_integer("nbest", 0, "Alternatives of a segment in JSON, of a beam search.", lower_bound=0)
MIN_CONFIDENCE = flags.DEFINE_float(
    "min-confidence", 0.0, "Leave out segments that are less sure, such as speech of other words than the model's."
)
MICROPHONE = flags.DEFINE_bool("microphone", False, "Transcribe the microphone (needs the extra 'microphone').")
REALTIME = flags.DEFINE_bool("realtime", False, "Feed files at the speed of speech.")
EXAMPLE = flags.DEFINE_bool("example", False, "Transcribe an utterance of the test split of the run's own data.")
ONE_CORE = flags.DEFINE_bool("one-core", False, "Use one processor core (Linux).")
JSON = flags.DEFINE_string("json", None, "Also write texts and timings to this file.")


def main(arguments: list[str]) -> None:
    if ONE_CORE.value:
        system.use_one_core()
    if len(arguments) < 2 and not (EXAMPLE.value or MICROPHONE.value):
        sys.exit("transcribe.py: name audio files, - for standard input, --microphone or --example (see --help)")
    try:
        system.check_writable(JSON.value)
        names = [*arguments[1:], *(["example"] * EXAMPLE.value), *(["microphone"] * MICROPHONE.value)]
        paths = output_paths(OUT_DIR.value, names, OUTPUT.value) if OUT_DIR.value else [None] * len(names)
        check_nbest(NBEST.value, MODEL.search)
        model = MODEL.load()
        recognizer = model.recognizer(min_confidence=MIN_CONFIDENCE.value, num_alternatives=NBEST.value)
        sources = open_sources(model.sample_rate, arguments[1:])
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"transcribe.py: {error}")

    model.warm_up()
    records, failed = [], False
    if OUT_DIR.value:
        pathlib.Path(OUT_DIR.value).mkdir(parents=True, exist_ok=True)
    for (name, blocks), path in zip(sources, paths, strict=True):
        recognizer.reset()
        record = {"source": name} | transcribe(recognizer, blocks, name, path)
        if record["error"]:
            print(f"transcribe.py: {record['error']}", file=sys.stderr)
            failed = True  # the other sources are still transcribed
        if JSON.value:
            records.append(record)
    if JSON.value:
        system.write_text(pathlib.Path(JSON.value), json.dumps(records, indent=2) + "\n")
    sys.exit(1 if failed else 0)


def open_sources(rate: int, names: Sequence[str]) -> list[tuple[str, Iterator[np.ndarray]]]:
    """The blocks of each source that the command names, at a rate in Hz. Raises AudioError for a closed input."""
    if "-" in names and sys.stdin is None:
        raise AudioError("-: standard input is closed: pipe audio into it, or name a file")
    sources = [
        (name, read_pcm(sys.stdin.buffer, rate) if name == "-" else read_audio(name, rate, BLOCK_SECONDS))
        for name in names
    ]
    if EXAMPLE.value:
        name, samples = read_example(rate)
        size = int(BLOCK_SECONDS * rate)
        sources.append((name, (samples[start : start + size] for start in range(0, len(samples), size))))
    if REALTIME.value:
        sources = [(name, pace(blocks, rate)) for name, blocks in sources]
    if MICROPHONE.value:
        sources.append(("microphone", record_microphone(rate)))
    return sources


def transcribe(
    recognizer: Recognizer, blocks: Iterator[np.ndarray], name: str, path: pathlib.Path | None
) -> dict[str, Any]:
    """Runs a source, and writes its file where it has one; as `run`. No file is left of a source without audio."""
    if path is None:
        return run(recognizer, blocks, Output(name, sys.stdout))
    record: dict[str, Any] = {}
    with contextlib.suppress(AudioError), system.replacing(path) as partial:
        with partial.open("w", encoding="utf-8") as file:
            record |= run(recognizer, blocks, Output(name, file))
        if record["error"] and not record["audio_seconds"]:
            raise AudioError(record["error"])
    return record


def run(recognizer: Recognizer, blocks: Iterator[np.ndarray], output: "Output") -> dict[str, Any]:
    """Feeds a stream and shows its text as it grows; returns its figures and, for --json, its text and words."""
    segments: list[Segment] = []
    compute, first_text, error = 0.0, None, None

    def advance(step: Callable[..., str], *arguments: np.ndarray) -> None:
        nonlocal compute, first_text
        start = time.perf_counter()
        text = step(*arguments)
        ended = recognizer.take_segments()
        compute += time.perf_counter() - start
        if text and first_text is None:
            first_text = recognizer.stream.audio.audio_seconds
        for segment in ended:
            output.segment(segment)
        output.partial(recognizer.stream.audio.audio_seconds, recognizer.text)
        if JSON.value:  # kept for nothing else: the source may be endless
            segments.extend(ended)

    try:
        for block in blocks:
            advance(recognizer.accept, block)
    except (AudioError, StreamError) as problem:
        error = str(problem)
    except KeyboardInterrupt:
        pass
    seconds = recognizer.stream.audio.audio_seconds
    if seconds or error is None:  # what came before an error is not lost
        advance(recognizer.finish)
        output.end()
    return {
        "text": " ".join(segment.text for segment in segments),
        "words": [word._asdict() for segment in segments for word in segment.words],
        "segments": [segment.as_dict() for segment in segments],
        "audio_seconds": seconds,
        "compute_seconds": compute,
        "rtf": compute / seconds if seconds else None,
        "first_text_after_audio_seconds": first_text,
        "error": error,
    }


class Output:
    """Text as it grows: rewritten in place on a terminal, a line for each change elsewhere.

    On standard error unless plain text is printed, so that subtitles and JSON can be piped.

    Args:
        source: its name.
        file: what is written of segments that have ended.
    """

    def __init__(self, source: str, file: TextIO):
        self._file = sys.stdout if OUTPUT.value == "txt" else sys.stderr
        self._on_terminal, self._shown, self._silent = self._file.isatty(), "", True
        self._writer, self._written = Writer(OUTPUT.value, source), file if file is not self._file else None
        self._write(self._writer.begin())

    def partial(self, seconds: float, text: str) -> None:
        """Shows the text of the current segment, if it has changed; on a terminal, how far the source is heard too."""
        clock = f"{int(seconds) // 60}:{int(seconds) % 60:02}  " if self._on_terminal else ""
        if clock + text == self._shown:
            return
        self._shown = clock + text
        if self._on_terminal:
            columns = os.get_terminal_size(self._file.fileno()).columns  # 0 where the terminal does not know
            shown = text[len(clock) + 1 - columns :] if columns > len(clock) + 1 else text
            print(f"\r\x1b[K{clock}{shown}", end="", file=self._file, flush=True)
        elif text:
            print(f"{seconds:7.2f} s  {text}", file=self._file, flush=True)

    def segment(self, segment: Segment) -> None:
        """Shows a segment that has ended, and writes it in the format asked for."""
        self._final(segment.text)
        self._silent = False
        self._write(self._writer.segment(segment))

    def end(self) -> None:
        """Writes what is left; shows that nothing was recognised, if so, and leaves no clock behind."""
        self._write(self._writer.end())
        if self._silent:
            self._final("")
        elif self._on_terminal:
            print("\r\x1b[K", end="", file=self._file, flush=True)

    def _write(self, text: str) -> None:
        if self._written is not None and text:
            print(text, end="", file=self._written, flush=True)

    def _final(self, text: str) -> None:
        self._shown = ""
        print(f"\r\x1b[K{text}" if self._on_terminal else f"    final  {text}", file=self._file, flush=True)


def read_example(rate: int) -> tuple[str, np.ndarray]:
    """The longest utterance of the test split of the run's data: what it is, and its samples."""
    # Here, since reading a corpus takes long to import.
    from conformer.data import DataError, in_splits, load_utterances

    config = Config.from_json(MODEL.workdir / "config.json")
    tests = list(in_splits(load_utterances(config), ("test",)))
    if not tests:
        raise DataError("--example: the run's data has no test split to take an utterance from")
    example = max(tests, key=lambda utterance: utterance.duration)
    return f"{example.id} ({example.text!r})", example.samples(rate)


if __name__ == "__main__":
    try:
        run_command(main)
    except OSError as error:  # a full disk, say
        sys.exit(f"transcribe.py: {error}")
