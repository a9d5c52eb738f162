"""The formats that a model can be exported in, and what each can and cannot take: decided before any work."""

import importlib
import importlib.util
import pathlib
import warnings
from types import ModuleType
from typing import NamedTuple

import numpy as np

from conformer.config import Config, FeatureConfig
from conformer.export.step import Geometry
from conformer.model import ConformerCTC


class ExportError(ValueError):
    """An export that cannot be made, or an artefact that cannot be run; the message names the remedy."""


class Task(NamedTuple):
    """What a back end is asked for."""

    config: Config
    model: ConformerCTC
    geometry: Geometry
    numerics: str
    path: pathlib.Path  # of the artefact
    calibration: list[np.ndarray]  # windows of a few streams, (chunks, window, mel) each; empty unless needed


class Interface(NamedTuple):
    """What a back end wrote: name -> [dtype, shape] of each tensor, in order."""

    inputs: dict[str, list]
    outputs: dict[str, list]


class Format(NamedTuple):
    """A back end: a module with `export` and a class of `Runtime`, imported when it is needed."""

    module: str
    runtime: str
    suffix: str
    numerics: tuple[str, ...]  # the first is the default
    packages: tuple[str, ...]  # modules that must be there
    calibrated: tuple[str, ...] = ()  # numerics that need speech to set their scales by


FORMATS = {
    "onnx": Format("onnx", "OnnxRuntime", ".onnx", ("float32", "float16", "int8"), ("jax2onnx", "onnx", "onnxruntime")),
    "litert": Format(
        "litert", "LiteRt", ".tflite", ("float32", "int8"), ("litert_converter", "ai_edge_litert", "ai_edge_quantizer")
    ),
    "tflite-micro": Format(
        "micro",
        "TfliteMicro",
        ".tflite",
        ("int16x8", "int8", "float32"),
        ("litert_converter", "ai_edge_quantizer", "tflite_micro"),
        calibrated=("int16x8", "int8"),
    ),
    "coreml": Format("coreml", "CoreMl", ".mlpackage", ("float16",), ("coremltools",)),
    "jax": Format("stablehlo", "JaxExport", ".stablehlo", ("float32",), ("flatbuffers",)),
}


def check_request(config: Config, format: str, numerics: str, chunk_size: int, num_left_chunks: int) -> None:
    """Raises ExportError for what cannot be exported, warns of what was not trained for."""
    options = FORMATS[format].numerics
    if numerics not in options:
        raise ExportError(f"--numerics={numerics} is not one that --format={format} can have: {', '.join(options)}")
    if chunk_size < 1 or num_left_chunks < 1:
        raise ExportError(
            f"--chunk-size={chunk_size} --num-left-chunks={num_left_chunks}: a state of fixed size needs at least 1 of "
            "each; 16 and 4 are usual"
        )
    if not config.model.causal_conv:
        raise ExportError("a model with model.causal_conv=False looks ahead and cannot stream: train a causal one")
    if chunk_size not in config.train.chunk_sizes:
        warnings.warn(
            f"--chunk-size={chunk_size} is not one of train.chunk_sizes={config.train.chunk_sizes} that the model was "
            "trained for: expect more errors",
            stacklevel=2,
        )
    if format == "onnx" and (reason := not_for_sherpa(config)):
        warnings.warn(f"for ONNX Runtime alone: {reason}", stacklevel=2)
    backend(format)


def not_for_sherpa(config: Config) -> str | None:
    """Why the stock clients of sherpa-onnx cannot serve a model; None where they can."""
    factor = config.model.subsampling_factor
    if factor != 4:
        return (
            f"sherpa-onnx's times assume model.subsampling_factor=4, this model has {factor}: train one with 4 for it"
        )
    expected = FeatureConfig(dither=config.features.dither)
    for name, value in vars(expected).items():
        if (own := getattr(config.features, name)) != value:
            return (
                f"sherpa-onnx computes features.{name}={value}, this model needs {own}: train one with {value} for it"
            )
    return None


def backend(format: str) -> ModuleType:
    """The module of a format. Raises ExportError where a package it needs is missing."""
    missing = [name for name in FORMATS[format].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--format={format} needs {', '.join(missing)}: pip install -c requirements.lock -e '.[export]'"
        )
    return importlib.import_module(f"conformer.export.{FORMATS[format].module}")
