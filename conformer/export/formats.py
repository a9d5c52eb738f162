"""The request for an export, and the check that its format can hold it: made before any work."""

import importlib
import pathlib
import warnings
from types import ModuleType
from typing import NamedTuple

import numpy as np

from conformer.artefacts.formats import FORMATS, ExportError, check_packages
from conformer.artefacts.geometry import Geometry
from conformer.config import Config, FeatureConfig
from conformer.model import ConformerCTC


class Task(NamedTuple):
    """The export that a back end is asked to make."""

    config: Config
    model: ConformerCTC
    geometry: Geometry
    numerics: str
    path: pathlib.Path  # of the artefact
    calibration: list[np.ndarray]  # windows of a few streams, (chunks, window, mel) each; empty unless needed


class Interface(NamedTuple):
    """The interface of an artefact: name -> [dtype, shape] of each input and output, in order."""

    inputs: dict[str, list]
    outputs: dict[str, list]


WHOLE = ("onnx", "litert", "jax")  # formats that take whole recordings
LONGEST = 300.0  # seconds of one: attention compares all of its frames


def check_request(
    config: Config,
    format: str,
    numerics: str,
    chunk_size: int,
    num_left_chunks: int,
    max_seconds: float | None = None,
    look_ahead: int = 0,
) -> None:
    """Raises ExportError for what cannot be exported, warns of what was not trained for.

    `max_seconds` is that of whole recordings, None of a streaming step.
    """
    options = FORMATS[format].numerics
    if numerics not in options:
        raise ExportError(f"--numerics={numerics} is not one that --format={format} can have: {', '.join(options)}")
    if max_seconds is not None:
        _check_whole(config, format, numerics, max_seconds)
        return
    if chunk_size < 1 or num_left_chunks < 1:
        raise ExportError(
            f"--chunk-size={chunk_size} --num-left-chunks={num_left_chunks}: a state of fixed size needs at least 1 of "
            "each; 16 and 4 are usual"
        )
    if look_ahead < 0:
        raise ExportError(f"--look-ahead={look_ahead}: it is a number of frames, at least 0")
    if (reason := config.not_streaming) is not None:
        raise ExportError(f"{reason}; or export it for whole recordings: add --whole")
    if numerics == "float16-stable" and config.model.positions == "absolute":
        raise ExportError(
            "model.positions=absolute: float16 cannot count the frames of a stream: export with --numerics=float16, or "
            "a model with learned or relative positions"
        )
    if format == "tflite-micro" and (config.features.kind != "kaldi" or config.model.subsampling_padding != "none"):
        raise ExportError(
            "--format=tflite-micro has Kaldi's front end in C and no padded one: export for litert, or train a model "
            "with features.kind=kaldi and model.subsampling_padding=none"
        )
    if reason := config.untrained_chunk(chunk_size, look_ahead):
        warnings.warn(reason, stacklevel=2)
    if format == "onnx" and (reason := not_for_sherpa(config)):
        warnings.warn(f"for ONNX Runtime alone: {reason}", stacklevel=2)
    backend(format)


def _check_whole(config: Config, format: str, numerics: str, max_seconds: float) -> None:
    if format not in WHOLE:
        raise ExportError(
            f"--format={format} takes a streaming step alone: export whole recordings for {', '.join(WHOLE)}"
        )
    if numerics in FORMATS[format].calibrated:
        raise ExportError(f"--numerics={numerics} takes its ranges from streams: export whole recordings with int8")
    if not 0 < max_seconds <= LONGEST:
        raise ExportError(f"--max-seconds={max_seconds:g} must lie within 0 and {LONGEST:g}: cut longer recordings")
    if 0 not in config.train.chunk_sizes:
        warnings.warn(
            f"0 is not one of train.chunk_sizes={config.train.chunk_sizes}: the model was not trained for whole "
            "recordings, expect more errors",
            stacklevel=3,
        )
    backend(format)


def not_for_sherpa(config: Config) -> str | None:
    """Returns why the stock clients of sherpa-onnx cannot serve a model; None where they can."""
    factor = config.model.subsampling_factor
    if factor != 4:
        return (
            f"sherpa-onnx's times assume model.subsampling_factor=4, this model has {factor}: train one with 4 for it"
        )
    theirs = config.features  # dither is for training, and the silence at the end a client's own business
    expected = FeatureConfig(dither=theirs.dither, trailing_silence=theirs.trailing_silence)
    for name, value in vars(expected).items():
        if (own := getattr(config.features, name)) != value:
            return (
                f"sherpa-onnx computes features.{name}={value}, this model needs {own}: train one with {value} for it"
            )
    return None


def backend(format: str) -> ModuleType:
    """The module that writes a format. Raises ExportError where a package it needs is missing."""
    check_packages(format, FORMATS[format].interpreters + FORMATS[format].converters)
    return importlib.import_module(f"conformer.export.{FORMATS[format].module}")
