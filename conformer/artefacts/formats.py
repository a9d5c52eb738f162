"""The formats of artefacts, and the packages that each needs."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import NamedTuple


class ExportError(ValueError):
    """An export that cannot be made, or an artefact that cannot be run; the message names the remedy."""


class Format(NamedTuple):
    """A module of `conformer.export` that writes it, and one of the same name here that runs it.

    Both are imported when they are needed.
    """

    module: str
    runtime: str  # the class that runs it
    suffix: str
    numerics: tuple[str, ...]  # the first is the default
    interpreters: tuple[str, ...]  # packages that must be there to run it
    converters: tuple[str, ...] = ()  # packages that must be there, too, to write it
    calibrated: tuple[str, ...] = ()  # numerics that need speech to set their scales by


TO_TFLITE = ("litert_converter", "ai_edge_quantizer")
FORMATS = {
    "onnx": Format(
        "onnx",
        "OnnxRuntime",
        ".onnx",
        ("float32", "float16", "float16-stable", "int8", "int8-static"),
        ("onnxruntime",),
        ("jax2onnx", "onnx"),
        calibrated=("int8-static",),
    ),
    "litert": Format(
        "litert", "LiteRt", ".tflite", ("float32", "float16-stable", "int8"), ("ai_edge_litert",), TO_TFLITE
    ),
    "tflite-micro": Format(
        "micro",
        "TfliteMicro",
        ".tflite",
        ("int16x8", "int8", "float32"),
        ("tflite_micro", "ai_edge_litert"),
        TO_TFLITE,
        calibrated=("int16x8", "int8"),
    ),
    "coreml": Format("coreml", "CoreMl", ".mlpackage", ("float16",), ("coremltools",)),
    "jax": Format("stablehlo", "JaxExport", ".stablehlo", ("float32",), ("flatbuffers",)),
}
# Numerics of a format in which nothing overflows where hardware rounds every operation to float16.
STABILISED = {"onnx": ("float16-stable",), "litert": ("float16-stable",), "coreml": ("float16",)}


def check_packages(format: str, packages: Sequence[str]) -> None:
    """Raises ExportError where one of them is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"the format {format} needs {', '.join(missing)}: pip install -c requirements.lock -e '.[export]'"
        )
