"""Recognises a checkpoint and makes a work directory of it."""

import pathlib

from conformer.checkpoints import nemo, transformers, wenet
from conformer.checkpoints.imported import Imported
from conformer.checkpoints.tensors import ConversionError


def read_checkpoint(path: pathlib.Path) -> Imported:
    """The model of a `.nemo` file, of a folder of WeNet, or of one of transformers. Raises ConversionError."""
    try:
        return _read(path)
    except ValueError as error:  # of what was made of it, too, such as a configuration
        if str(path) in str(error):
            raise
        raise ConversionError(f"{path}: {error}") from None


def _read(path: pathlib.Path) -> Imported:
    if path.is_file() and path.suffix == ".nemo":
        return nemo.read(path)
    if not path.exists():
        raise ConversionError(f"{path} does not exist: name a .nemo file or the folder of a checkpoint")
    if path.is_dir() and (path / wenet.CONFIG_FILE).is_file():
        return wenet.read(path)
    if path.is_dir() and (path / transformers.CONFIG_FILE).is_file():
        return transformers.read(path)
    raise ConversionError(
        f"{path} is no checkpoint that is known here: name a .nemo file, a folder of WeNet (with {wenet.CONFIG_FILE}) "
        f"or one of transformers (with {transformers.CONFIG_FILE} and safetensors)"
    )
