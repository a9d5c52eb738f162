"""One stream: audio of any length in, text so far out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.config import Config
from conformer.decode.greedy import GreedyDecoder, Token
from conformer.features import StreamingLogMel
from conformer.model import ConformerCTC
from conformer.tokenizer import Tokenizer
from kernels.typing import Float


class StreamError(ValueError):
    """A stream used in a way that it cannot serve; the message says what to do instead."""


class Recognizer:
    """Greedy recognition of a stream, chunk by chunk.

        recognizer = Recognizer(config, model, tokenizer)
        for samples in microphone:
            recognizer.accept(samples)
            print(recognizer.text)
        print(recognizer.finish())

    The encoder sees `chunk_size` frames at a time and `num_left_chunks` chunks before them; its state has a constant
    size, whatever the length of the stream.
    """

    def __init__(
        self,
        config: Config,
        model: ConformerCTC,
        tokenizer: Tokenizer,
        *,
        chunk_size: int = 16,
        num_left_chunks: int = 4,
    ):
        self._tokenizer = tokenizer
        self._subsampling = model.encoder.subsampling
        self._window = self._subsampling.window(chunk_size)
        self._shift = chunk_size * self._subsampling.subsampling_factor
        self._chunk_size = chunk_size
        self._features = StreamingLogMel(config.features)
        self._pending = np.zeros((0, config.features.num_mel_bins), np.float32)
        self._decoder = GreedyDecoder()
        self._tokens: list[Token] = []
        self._finished = False
        self._cache = model.encoder.initial_cache(1, chunk_size, num_left_chunks)
        graphdef, self._state = nnx.split(model)

        @jax.jit
        def step(state, cache, window, num_frames):
            model = nnx.merge(graphdef, state)
            x, cache = model.encoder.step(cache, model.normalise(window), num_frames)
            return jax.nn.log_softmax(model.head(x)), cache

        self._step = step
        self.latency = self._window * config.features.frame_shift_ms / 1000

    @property
    def text(self) -> str:
        """What has been recognised so far."""
        return self._tokenizer.decode([token.id for token in self._tokens])

    def warm_up(self) -> None:
        """Compiles the step ahead of the first audio."""
        window = jnp.zeros((1, self._window, self._pending.shape[1]))
        jax.block_until_ready(self._step(self._state, self._cache, window, jnp.zeros(1, jnp.int32)))

    def accept(self, samples: Float[np.ndarray, " samples"]) -> str:
        """Takes the next samples, float32 in [-1, 1) at the configured rate, and returns the text so far."""
        if self._finished:
            raise StreamError("audio after finish(): make a new Recognizer for the next stream")
        self._take(self._features.accept(samples))
        return self.text

    def finish(self) -> str:
        """Ends the stream, recognises what is left of it and returns the final text. May be called again."""
        if not self._finished:
            self._finished = True
            self._take(self._features.flush())
            frames = self._subsampling.output_lengths(len(self._pending))
            padding = self._window * (math.ceil(frames / self._chunk_size) + 1)
            self._pending = np.pad(self._pending, ((0, padding), (0, 0)))
            while frames > 0:
                self._advance(min(frames, self._chunk_size))
                frames -= self._chunk_size
        return self.text

    def _take(self, features: np.ndarray) -> None:
        self._pending = np.concatenate([self._pending, features])
        while len(self._pending) >= self._window:
            self._advance(self._chunk_size)

    def _advance(self, num_frames: int) -> None:
        window = self._pending[None, : self._window]
        self._pending = self._pending[self._shift :]
        log_probs, self._cache = self._step(self._state, self._cache, window, np.full(1, num_frames, np.int32))
        self._tokens += self._decoder.step(np.asarray(log_probs)[0, :num_frames])
