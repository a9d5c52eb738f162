"""Recognition of audio as it arrives, by any `Stepper`. Needs no JAX: `engine` is the stepper that does."""

from conformer.streaming.pool import Stream, StreamPool
from conformer.streaming.recognizer import Recognizer
from conformer.streaming.stepper import Framing, Stepper
from conformer.streaming.transcript import EndpointConfig, Segment, Transcript, Word
from conformer.streaming.windows import StreamError, Window, Windows, windows_of

__all__ = [
    "EndpointConfig",
    "Framing",
    "Recognizer",
    "Segment",
    "Stepper",
    "Stream",
    "StreamError",
    "StreamPool",
    "Transcript",
    "Window",
    "Windows",
    "Word",
    "windows_of",
]
