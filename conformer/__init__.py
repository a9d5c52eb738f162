"""Streaming speech recognition for devices with little memory. `conformer.load` is where an app begins: docs/api.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformer.api import LiveStream, LoadError, Model, Transcription, load

__all__ = ["LiveStream", "LoadError", "Model", "Transcription", "load"]


def __getattr__(name: str) -> Any:
    """Imports the names above when they are first used: a command that needs none of them starts sooner."""
    if name not in __all__:
        raise AttributeError(f"module 'conformer' has no attribute {name!r}")
    from conformer import api

    return getattr(api, name)
