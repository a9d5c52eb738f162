"""Recognition of audio as it arrives."""

from conformer.streaming.pool import StreamPool
from conformer.streaming.recognizer import Recognizer
from conformer.streaming.stream import EndpointConfig, Segment, Stream, StreamError, Word

__all__ = ["EndpointConfig", "Recognizer", "Segment", "Stream", "StreamError", "StreamPool", "Word"]
