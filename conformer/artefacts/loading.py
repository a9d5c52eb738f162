"""Loads artefacts from their files."""

import importlib
import pathlib
from typing import Any

from conformer.artefacts.card import load_cards
from conformer.artefacts.formats import FORMATS, ExportError, check_packages
from conformer.artefacts.geometry import Geometry
from conformer.artefacts.runtime import Runtime
from conformer.config import FeatureConfig
from conformer.tokenizer import Tokenizer, load_tokenizer


def load_artefact(path: str | pathlib.Path) -> tuple[Runtime, Tokenizer]:
    """Loads an artefact, named by its file or its card, and the tokenizer beside it. The artefact has run one step.

    Raises ExportError or TokenizerError where one of them is missing or broken, or where a package that runs the
    format is missing.
    """
    path = pathlib.Path(path)
    if not path.suffix or not path.exists():
        raise ExportError(f"{path} is no artefact: name one that export.py wrote, such as exported/onnx_int8.onnx")
    (card,) = load_cards(path.with_suffix(".json"))
    tokenizer = load_tokenizer(path.parent, card.normalise)
    if tokenizer.vocab_size != card.geometry.vocab_size:
        raise ExportError(
            f"{path.parent}: the tokenizer has {tokenizer.vocab_size} units, the artefact {card.geometry.vocab_size}: "
            "restore the tokenizer that it was exported with"
        )
    runtime = _load(card.format, path.parent / card.file, card.geometry, card.features)
    try:
        runtime.warm_up()
    except Exception as error:
        raise ExportError(
            f"{path} does not run with the sizes of its card ({_reason(error)}): restore both, or export again"
        ) from None
    return runtime, tokenizer


def load_runtimes(format: str, path: pathlib.Path, geometry: Geometry, features: FeatureConfig) -> dict[str, Runtime]:
    """The artefact in each way to run it (`Runtime.variants`).

    Raises ExportError where it is missing or broken, or a package that runs it is missing.
    """
    return {
        suffix: _load(format, path, geometry, features, **options)
        for suffix, options in _runtime_class(format).variants().items()
    }


def _load(format: str, path: pathlib.Path, geometry: Geometry, features: FeatureConfig, **options: Any) -> Runtime:
    if not path.exists():
        raise ExportError(f"{path} does not exist, though its card does: export again")
    runtime = _runtime_class(format)
    try:
        return runtime(path, geometry, features, **options)
    except ExportError:
        raise
    except Exception as error:  # interpreters raise what they like
        raise ExportError(f"{path} cannot be loaded ({_reason(error)}): export again") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _runtime_class(format: str) -> type[Runtime]:
    check_packages(format, FORMATS[format].interpreters)
    module = importlib.import_module(f"conformer.artefacts.{FORMATS[format].module}")
    return getattr(module, FORMATS[format].runtime)
