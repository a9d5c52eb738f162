"""Compares the stock sherpa-onnx client, running an artefact, with the recogniser here on the same samples."""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import soundfile

from conformer.artefacts.card import Card
from conformer.artefacts.formats import ExportError
from conformer.audio import INT16_SCALE, float_to_pcm16
from conformer.filterbank import StreamingLogMel
from conformer.streaming import Recognizer, Stepper
from conformer.tokenizer import SPACE_SYMBOL, Tokenizer
from kernels.typing import Float

FRAME_SECONDS = 0.04  # of an encoder frame, as the client assumes
TAIL_SECONDS = 0.8  # of silence that the client is fed at the end: it decodes whole windows alone


class Agreement(NamedTuple):
    """The client against `Recognizer`."""

    version: str  # of the client
    files: int
    same_text: int
    same_tokens: int
    same_timestamps: int
    features: float | None  # largest difference of a log-mel value; None where the client hands none out


def decode(
    card: Card,
    folder: pathlib.Path,
    recordings: Sequence[np.ndarray],
    *,
    num_streams: int = 1,
    python: str = sys.executable,
    **overrides: Any,
) -> dict:
    """The client's version, and its text, tokens, timestamps and first features of each recording.

    Args:
        recordings: samples in [-1, 1) at the model's rate.
        num_streams: decoded at once, in one call of the client.
        python: an interpreter that has sherpa-onnx, of any version.
        overrides: of the client's settings, such as chunk_size.

    Raises:
        ExportError: the client's process ended without a result, which is how it refuses a model.
    """
    geometry = card.geometry
    with tempfile.TemporaryDirectory() as temporary:
        files = [str(pathlib.Path(temporary, f"{index}.wav")) for index in range(len(recordings))]
        for file, samples in zip(files, recordings, strict=True):
            soundfile.write(file, samples, card.features.sample_rate, subtype="PCM_16")
        job = {
            "tokens": str(folder / "tokens.txt"),
            "model": str(folder / card.file),
            "chunk_size": geometry.chunk_size,
            "num_left_chunks": geometry.num_left_chunks,
            "num_streams": num_streams,
            "tail_seconds": TAIL_SECONDS,
            "files": files,
        }
        script = pathlib.Path(__file__).with_name("sherpa_client.py")
        client = subprocess.run(
            [python, str(script)], input=json.dumps(job | overrides), capture_output=True, text=True, check=False
        )
    if client.returncode or not client.stdout:
        reason = (client.stderr.strip().splitlines() or ["without a word"])[-1]
        raise ExportError(f"sherpa-onnx refused {card.file} (status {client.returncode}): {reason}")
    return json.loads(client.stdout)


class Heard(NamedTuple):
    """The results of our recogniser for a recording, in the form in which the client reports its own."""

    text: str
    tokens: list[str]
    timestamps: list[float]  # seconds
    features: Float[np.ndarray, "frames mel"]


def recognise(stepper: Stepper, tokenizer: Tokenizer, recordings: Sequence[np.ndarray]) -> list[Heard]:
    """Each recording in a `Recognizer` that hears the same silence at the end as the client."""
    recognizer, features = Recognizer(stepper, tokenizer), stepper.framing.features
    silence = np.zeros(int(TAIL_SECONDS * features.sample_rate), np.float32)
    heard = []
    for samples in map(_in_16_bits, recordings):
        recognizer.reset()
        recognizer.accept(np.concatenate([samples, silence]))
        tokens = recognizer.stream.transcript.tokens
        heard.append(
            Heard(
                tokenizer.decode([token.id for token in tokens]),
                [tokenizer.symbols[token.id].replace(SPACE_SYMBOL, " ") for token in tokens],
                [round(token.frame * FRAME_SECONDS, 2) for token in tokens],
                StreamingLogMel(features).accept(samples),
            )
        )
    return heard


def compare(
    card: Card,
    folder: pathlib.Path,
    recordings: Sequence[np.ndarray],
    own: Sequence[Heard],
    *,
    num_streams: int = 1,
    python: str = sys.executable,
) -> Agreement:
    """Decodes the recordings in the client, and compares with what `recognise` made of them."""
    theirs = decode(card, folder, [*map(_in_16_bits, recordings)], num_streams=num_streams, python=python)
    same = np.zeros(3, int)
    differences = []
    for ours, result in zip(own, theirs["results"], strict=True):
        client = (result["text"].strip(), result["tokens"], [round(second, 2) for second in result["timestamps"]])
        same += [a == b for a, b in zip(ours[:3], client, strict=True)]
        if result["features"]:
            features = np.reshape(np.asarray(result["features"], np.float32), (-1, card.features.num_mel_bins))
            differences.append(np.abs(ours.features[: len(features)] - features).max())
    largest = float(max(differences)) if differences else None
    return Agreement(theirs["version"], len(recordings), int(same[0]), int(same[1]), int(same[2]), largest)


def _in_16_bits(samples: np.ndarray) -> np.ndarray:
    """Rounds samples to 16 bits, as the client reads them from a file."""
    return float_to_pcm16(samples).astype(np.float32) / INT16_SCALE
