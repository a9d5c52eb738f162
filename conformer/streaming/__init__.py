"""Recognition of audio as it arrives, by any `Stepper`. Needs no JAX: `engine` is the stepper that does."""

from conformer.streaming.pool import StreamPool as StreamPool
from conformer.streaming.recognizer import Recognizer as Recognizer
from conformer.streaming.stepper import Framing as Framing
from conformer.streaming.stepper import Stepper as Stepper
from conformer.streaming.transcript import EndpointConfig as EndpointConfig
from conformer.streaming.transcript import Segment as Segment
from conformer.streaming.transcript import Transcript as Transcript
from conformer.streaming.transcript import Word as Word
from conformer.streaming.windows import StreamError as StreamError
from conformer.streaming.windows import Windows as Windows
from conformer.streaming.windows import log_probs_of as log_probs_of
from conformer.streaming.windows import windows_of as windows_of
