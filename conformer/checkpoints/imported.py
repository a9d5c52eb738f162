"""The result of reading a checkpoint, and the work directory that it becomes."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from conformer import system
from conformer.checkpoints.tensors import ConversionError
from conformer.checkpoints.weights import Source, parameters_of
from conformer.config import Config
from conformer.filterbank import plan_of
from conformer.tokenizer import BpeTokenizer, Tokenizer
from conformer.training.checkpoint import save_arrays


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model, ready to be written."""

    format: str
    config: Config
    tokenizer: Tokenizer
    parameters: dict[str, np.ndarray]

    @classmethod
    def of(cls, format: str, config: Config, tokenizer: Tokenizer, source: Source) -> "Imported":
        """Reads the tensors.

        Raises ConversionError for tensors that are not those of the configuration, and FeatureError for features that
        cannot be computed.
        """
        plan_of(config.features)
        kind = "bpe" if isinstance(tokenizer, BpeTokenizer) else "char"
        config = config.replace({"tokenizer.kind": kind, "tokenizer.vocab_size": tokenizer.vocab_size - 1})
        return cls(format, config, tokenizer, parameters_of(source, config))

    def save(self, out: pathlib.Path) -> None:
        """Writes a work directory: configuration, tokenizer and weights, the last of all."""
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(out)
        system.write_text(out / "config.json", self.config.to_json())
        save_arrays(out, self.config, self.parameters)


def read_yaml(path: pathlib.Path) -> dict[str, Any]:
    """A file of YAML, in which nothing can run. Raises ConversionError for one that cannot be used."""
    return _mapping(path, lambda text: yaml.safe_load(text))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A file of JSON. Raises ConversionError for one that cannot be used."""
    return _mapping(path, json.loads)


def table(values: Mapping[str, Any], key: str, origin: Any) -> dict[str, Any]:
    """A section of a configuration, empty where there is none. Raises ConversionError for one that is no table."""
    section = values.get(key)
    if section is not None and not isinstance(section, dict):
        raise ConversionError(f"{origin}: {key}={section!r} is no table of options: restore the file")
    return section or {}


def brief(error: Exception) -> str:
    """What a parser says, which may be long, in one line."""
    return " ".join(str(error).split())[:200]


def _mapping(path: pathlib.Path, parse: Any) -> dict[str, Any]:
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror}): it belongs to the checkpoint") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConversionError(f"{path} is damaged ({brief(error)}): restore it") from None
    if not isinstance(values, dict):
        raise ConversionError(f"{path} holds no table of options: restore it")
    return values
