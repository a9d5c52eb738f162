"""Writes the artefacts that `benchmarks/export_peer.py` runs: `python -m benchmarks.exports FOLDER CHUNK LEFT`."""

import pathlib
import sys

from benchmarks.jax_peer import load_model
from conformer.artefacts.card import artefact_name
from conformer.artefacts.formats import FORMATS
from conformer.artefacts.geometry import Geometry
from conformer.export.formats import Task, backend

ARTEFACTS = (("onnx", "float32"), ("onnx", "int8"), ("litert", "float32"), ("litert", "int8"))


def artefact_path(folder: str, format: str, numerics: str) -> pathlib.Path:
    """Where an artefact lies."""
    return pathlib.Path(folder, artefact_name(format, numerics) + FORMATS[format].suffix)


def export(folder: str, chunk_size: int, num_left_chunks: int) -> None:
    """Adds the artefacts to a folder (see `benchmarks.streaming.save_inputs`)."""
    config, model = load_model(folder)
    geometry = Geometry.of(config, model, chunk_size, num_left_chunks)
    for format, numerics in ARTEFACTS:
        backend(format).export(Task(config, model, geometry, numerics, artefact_path(folder, format, numerics), []))


if __name__ == "__main__":
    export(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
