"""Recognition for apps: `load` a model, then `transcribe` recordings or `stream` live audio (docs/api.md).

Needs JAX for a work directory and for `export` alone: an artefact runs without it.
"""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from conformer import system
from conformer.artefacts.formats import FORMATS
from conformer.artefacts.loading import load_artefact
from conformer.audio import AudioError, as_samples, audio_seconds, check_rate, read_audio
from conformer.decode.confidence import Confidence
from conformer.decode.search import Search, make_decoding, read_lm, search_beside
from conformer.streaming import EndpointConfig, Framing, Recognizer, Segment, Stepper, StreamPool
from conformer.streaming.slots import Slots
from conformer.streaming.sources import BLOCK_SECONDS
from conformer.streaming.transcript import Word
from conformer.tokenizer import Tokenizer

_HERE = pathlib.Path(__file__).parent
SHIPPED = _HERE / "models" if (_HERE / "models").is_dir() else _HERE.parent / "models"  # in a wheel; in a checkout
CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4  # unless a caller chooses others
WHOLE_SECONDS = 60.0  # that a recording may last where the model takes whole ones alone
UNFIT_FOR_ARTEFACT = {
    "numerics": "its numbers are those that export.py --numerics gave it; export it again with others",
    "execution": "its layout is that of its format; leave it out",
    "chunk_size": "it is that of the export; export it again with another",
    "num_left_chunks": "they are those of the export; export it again with others",
    "look_ahead": "it is that of the export; export it again with another",
}


class LoadError(ValueError):
    """A model that cannot be loaded or used as asked; the message names the culprit and the remedy."""


class Transcription(NamedTuple):
    """The result for a recording: its text, its segments and its length."""

    text: str
    segments: tuple[Segment, ...]  # each with its text, words, times in seconds and confidence
    seconds: float  # of audio

    @property
    def words(self) -> list[Word]:
        """The words of all segments: text, start and end in seconds, confidence."""
        return [word for segment in self.segments for word in segment.words]


class LiveStream:
    """Live audio in, calls out. Made by `Model.stream`; ends with `finish`, or with its `with` block."""

    def __init__(
        self,
        recognizer: Recognizer,
        on_partial: Callable[[str], Any] | None,
        on_segment: Callable[[Segment], Any] | None,
    ):
        self._recognizer, self._on_partial, self._on_segment = recognizer, on_partial, on_segment
        self._segments: collections.deque[Segment] = collections.deque()  # that have ended and were not told
        self._shown = ""

    def accept(self, samples: Any) -> None:
        """Takes the next samples, any number of them (see `conformer.audio.as_samples`). Raises StreamError."""
        self._recognizer.accept(samples)
        self._report()

    def finish(self) -> None:
        """Recognises what is left of the audio. May be called again."""
        self._recognizer.finish()
        self._report()

    @property
    def text(self) -> str:
        """The text since the last segment ended, which may still change."""
        return self._recognizer.text

    @property
    def seconds(self) -> float:
        """Audio heard so far."""
        return self._recognizer.stream.audio.audio_seconds

    def __enter__(self) -> "LiveStream":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.finish()

    def _report(self) -> None:
        self._segments.extend(self._recognizer.take_segments())
        while self._segments:  # where the app's own function raises, the segments behind come with the next call
            segment, self._shown = self._segments.popleft(), ""
            if self._on_segment is not None:
                self._on_segment(segment)
        if (text := self.text) != self._shown:
            self._shown = text
            if self._on_partial is not None:
                self._on_partial(text)


class Model:
    """A recogniser that is ready. `load` makes it.

    Args:
        stepper: steps one stream.
        tokenizer: writes what the search finds.
        decoder: makes the decoder of a stream.
        folder: of the work directory; None for an artefact.
    """

    def __init__(
        self,
        stepper: Stepper,
        tokenizer: Tokenizer,
        decoder: Callable[[], Any],
        confidence: Confidence,
        folder: pathlib.Path | None,
    ):
        self._stepper, self._tokenizer, self._folder, self._warm = stepper, tokenizer, folder, False
        self.stream_options = {"decoder": decoder, "confidence": confidence, "endpoint": EndpointConfig()}

    @property
    def framing(self) -> Framing:
        """The numbers that audio is cut by."""
        return self._stepper.framing

    @property
    def sample_rate(self) -> int:
        """Hz of audio that needs no resampling."""
        return self.framing.features.sample_rate

    def transcribe(self, audio: Any, sample_rate: int | None = None) -> Any:
        """Recognises recordings one after the other.

        Args:
            audio: a file's name, or samples: an array of float32, int16 or int32, or a list of floats, of one channel
                or several (see `conformer.audio.as_samples`). A list of names, of arrays or of lists is as many
                recordings.
            sample_rate: of samples, in Hz; None = the model's. Files say their own.

        Returns a `Transcription`, or a list of them for a list of recordings. Raises AudioError, which names the
        recording and the remedy, before anything is recognised where that can be told.
        """
        if sample_rate is not None:
            check_rate(sample_rate)
        several = isinstance(audio, list | tuple) and len(audio) > 0 and _is_recording(audio[0])
        recordings = list(audio) if several else [audio]
        sources = [
            self._source(recording, sample_rate, f"recording {index}: " if several else "")
            for index, recording in enumerate(recordings)
        ]
        transcriptions = [self._transcribe(blocks, rate) for blocks, rate in sources]
        return transcriptions if several else transcriptions[0]

    def stream(
        self,
        *,
        on_partial: Callable[[str], Any] | None = None,
        on_segment: Callable[[Segment], Any] | None = None,
        sample_rate: int | None = None,
        min_confidence: float = 0.0,
    ) -> LiveStream:
        """Begins a stream of live audio. A model can have many at a time.

        Args:
            on_partial: is called with the text of the current segment whenever it has changed.
            on_segment: is called with each segment that has ended; the partial text begins anew.
            sample_rate: of the audio that will come, in Hz; None = the model's.
            min_confidence: segments that are less sure are left out.

        Raises LoadError or StreamError for options that it cannot follow.
        """
        self.warm_up()
        options = {"sample_rate": sample_rate, "min_confidence": min_confidence}
        return LiveStream(self.recognizer(**options), on_partial, on_segment)

    def export(
        self,
        out: str | os.PathLike,
        format: str = "onnx",
        *,
        numerics: str | None = None,
        chunk_size: int = CHUNK_SIZE,
        num_left_chunks: int = NUM_LEFT_CHUNKS,
        look_ahead: int = 0,
        max_seconds: float | None = None,
    ) -> pathlib.Path:
        """Writes the model for another runtime, as export.py does, and returns the file, which `load` takes.

        Args:
            format: "onnx", "litert", "tflite-micro", "coreml" or "jax".
            numerics: numbers to compute with, such as "int8"; None = the format's first.
            max_seconds: of whole recordings, which are then taken in place of a stream's chunks.

        Raises ExportError for what the format cannot hold, and where the extra `export` is missing.
        """
        if self._folder is None:
            raise LoadError("an artefact cannot be exported again: load the work directory that it comes from")
        if format not in FORMATS:
            raise LoadError(f"there is no format {format!r}: choose of {', '.join(FORMATS)}")
        given = (chunk_size, num_left_chunks, look_ahead)
        if max_seconds is not None and given != (CHUNK_SIZE, NUM_LEFT_CHUNKS, 0):
            raise LoadError("max_seconds is for whole recordings: leave chunk_size, num_left_chunks and look_ahead out")
        system.check_folder(pathlib.Path(out))
        from conformer.export.pipeline import export

        out = pathlib.Path(out)
        card = export(self._folder, format, numerics, chunk_size, num_left_chunks, out, max_seconds, look_ahead)
        return out / card.file

    def recognizer(self, **options: Any) -> Recognizer:
        """Returns a `Recognizer` with a state of its own; `options` are those of `Stream`. Raises LoadError."""
        if not 0 <= options.get("min_confidence", 0) <= 1:
            raise LoadError(f"min_confidence={options['min_confidence']} is no probability: choose one from 0 to 1")
        return Recognizer(Slots(self._stepper, 1), self._tokenizer, **self.stream_options | options)

    def pool(self, size: int) -> StreamPool:
        """Returns a `StreamPool` of so many streams; open each with `stream_options`."""
        return StreamPool(Slots(self._stepper, size), self._tokenizer)

    @system.no_collection()
    def warm_up(self) -> None:
        """Runs a first step ahead of the first audio: it takes longer than others, for compilation."""
        if not self._warm:
            self._stepper.warm_up()
            self._warm = True

    def _source(self, recording: Any, sample_rate: int | None, where: str) -> tuple[Iterator[np.ndarray], int]:
        """Returns the blocks of a recording and their rate, in Hz.

        Raises AudioError for what is known to be wrong before any of it is recognised.
        """
        if isinstance(recording, str | os.PathLike):
            if not os.path.exists(recording) or os.path.isfile(recording):
                audio_seconds(recording)  # raises AudioError for what is no audio
            return read_audio(recording, self.sample_rate, BLOCK_SECONDS), self.sample_rate
        try:
            samples = as_samples(recording)
        except AudioError as error:
            raise AudioError(f"{where}{error}") from None
        if not len(samples):
            raise AudioError(f"{where}holds no samples: leave it out")
        rate = self.sample_rate if sample_rate is None else sample_rate
        return iter(np.array_split(samples, math.ceil(len(samples) / (BLOCK_SECONDS * rate)))), rate

    def _transcribe(self, blocks: Iterator[np.ndarray], rate: int) -> Transcription:
        segments: list[Segment] = []
        with self.stream(on_segment=segments.append, sample_rate=rate) as stream:
            for block in blocks:
                stream.accept(block)
        return Transcription(" ".join(segment.text for segment in segments), tuple(segments), stream.seconds)


@system.no_collection()
def load(
    name_or_path: str | os.PathLike,
    *,
    chunk_size: int | None = None,
    num_left_chunks: int | None = None,
    look_ahead: int | None = None,
    numerics: str | None = None,
    execution: str | None = None,
    **search: Any,
) -> Model:
    """Loads a recogniser.

    Args:
        name_or_path: a work directory, a file that export.py wrote, or a model that is shipped, such as "words" or
            "words_micro/onnx_int8.onnx".
        chunk_size: encoder frames recognised at a time; None = 16. This and what follows are for work directories: an
            artefact has its own.
        num_left_chunks: chunks of left context; None = 4.
        look_ahead: encoder frames after a chunk that it sees (docs/streaming.md); None = 0.
        numerics: one of `conformer.policy.POLICIES`; None = that of the model's config.
        execution: layout of tensors; None = as trained.
        search: fields of `conformer.decode.search.Search`, such as beam_size=8, hotwords=("go left",); what is left out
            is as it was tuned for the model, if it was.

    Raises LoadError, or another ValueError that names the culprit and the remedy, before any work is done.
    """
    path = find(name_or_path)
    artefact = _is_artefact(path)
    folder = path.parent if artefact else path
    if unknown := search.keys() - {field.name for field in dataclasses.fields(Search)}:
        raise LoadError(f"load has no option {', '.join(sorted(unknown))}: its documentation lists them")
    sizes = dict(chunk_size=chunk_size, num_left_chunks=num_left_chunks, look_ahead=look_ahead)
    options: dict[str, Any] = dict(numerics=numerics, execution=execution) | sizes
    given = {name: value for name, value in options.items() if value is not None}
    settings = search_beside(folder, search)
    confidence = Confidence.load(folder)
    if artefact:
        for name in given:
            raise LoadError(f"{name} does not go with an artefact: {UNFIT_FOR_ARTEFACT[name]}")
        stepper, tokenizer = load_artefact(path)
    else:
        stepper, tokenizer = _load_workdir(path, **given)
    writer, decoder = make_decoding(settings, tokenizer, read_lm(settings, tokenizer))
    return Model(stepper, writer, decoder, confidence, None if artefact else path)


def find(name_or_path: str | os.PathLike) -> pathlib.Path:
    """Returns the work directory or the artefact of that name, here or among the models that are shipped.

    Raises LoadError where there is none.
    """
    for path in (pathlib.Path(name_or_path), SHIPPED / name_or_path):
        if _is_artefact(path) or (path / "config.json").is_file():
            return path
    path = pathlib.Path(name_or_path)
    if not path.exists():
        shipped = ", ".join(sorted(folder.parent.name for folder in SHIPPED.glob("*/config.json")))
        raise LoadError(
            f"{path} does not exist: name a work directory, a file that export.py wrote, or one of the models that are "
            f"shipped: {shipped or 'none is here'}"
        )
    return path  # what loads it says what it lacks


def _load_workdir(
    path: pathlib.Path,
    numerics: str | None = None,
    execution: str | None = None,
    **sizes: int,
) -> tuple[Stepper, Tokenizer]:
    """A model in JAX, which is imported here alone: an artefact starts sooner without it, and runs where it is not."""
    try:
        from conformer.model.subsampling import lengths_of
        from conformer.numerics import apply_policy
        from conformer.streaming.engine import Engine
        from conformer.streaming.whole import WholeEngine
        from conformer.training.checkpoint import load_model
    except ModuleNotFoundError as error:
        raise LoadError(
            f"{path} runs in JAX, and the package {error.name} is missing: pip install edge-conformer with what it "
            "depends on, or name an artefact, such as words_micro/onnx_int8.onnx"
        ) from None

    config, model, tokenizer, _ = load_model(path, execution)
    model = apply_policy(model, numerics or config.numerics)
    if config.not_streaming is not None:
        for name in sizes:
            raise LoadError(f"{name} is of streams, leave it out for {path}: {config.not_streaming}")
        framing = Framing.of_whole(config.features, lengths_of(config.model), WHOLE_SECONDS)
        return WholeEngine(model, framing, config.whole_context), tokenizer
    return Engine(config, model, **dict(chunk_size=CHUNK_SIZE, num_left_chunks=NUM_LEFT_CHUNKS) | sizes), tokenizer


def _is_artefact(path: pathlib.Path) -> bool:
    """Returns whether a path is an artefact of export.py: a file or, for Core ML, a folder with its suffix."""
    return path.is_file() or (path.is_dir() and path.suffix == FORMATS["coreml"].suffix)


def _is_recording(item: Any) -> bool:
    """Returns whether an item of a list is a recording, not a sample."""
    return isinstance(item, str | os.PathLike | list | tuple) or getattr(item, "ndim", 0) > 0
