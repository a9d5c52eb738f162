"""Sizes of real models, for tests and benchmarks."""

from typing import NamedTuple

import jax

from kernels.typing import Array, Key


class Shape(NamedTuple):
    rows: int
    channels: int

    def arguments(self, key: Key[Array, ""], dtype: str = "float32") -> tuple[Array, Array, Array]:
        """Random x, scale and bias."""
        x_key, *keys = jax.random.split(key, 3)
        scale, bias = (jax.random.normal(k, (self.channels,)) for k in keys)
        return jax.random.normal(x_key, self).astype(dtype), scale, bias


SHAPES = {
    "stream_words": Shape(16, 144),  # a chunk of 640 ms of configs/words.py
    "train_words": Shape(1_120, 144),  # its batch of 45 s
    "train_medium": Shape(23_896, 256),  # a batch of 960 s, utterances of 16.5 s
    "rows_256": Shape(65_536, 256),
    "rows_512": Shape(65_536, 512),
    "rows_1024": Shape(65_536, 1_024),
}
