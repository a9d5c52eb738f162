"""Recognition of audio as it arrives."""

from conformer.streaming.recognizer import Recognizer as Recognizer
from conformer.streaming.recognizer import StreamError as StreamError
