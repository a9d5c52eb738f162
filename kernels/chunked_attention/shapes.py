"""Sizes of real models, for tests and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.chunked_attention.rows import chunk_rows
from kernels.typing import Array, Key


class Shape(NamedTuple):
    """Args:
    queries: the last of `keys`; fewer of them in a stream.
    largest: R, the largest distance with a bias of its own.
    chunk_size: 0 = every frame sees all.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    largest: int
    chunk_size: int
    num_left_chunks: int

    @property
    def chunks(self) -> tuple[int, int] | None:
        """As `chunked_attention` takes them."""
        return (self.chunk_size, self.num_left_chunks) if self.chunk_size else None

    def arguments(self, key: Key[Array, ""], dtype: str = "float32") -> tuple[Array, ...]:
        """Random query, key, value and relative_bias, and the rows; the second half of the batch is shorter."""
        *keys, bias_key = jax.random.split(key, 4)
        frames = (self.queries, self.keys, self.keys)
        query, key, value = (
            jax.random.normal(k, (self.batch, n, self.heads, self.head_dim)).astype(dtype)
            for k, n in zip(keys, frames, strict=True)
        )
        bias = jax.random.normal(bias_key, (self.heads, 2 * self.largest + 1))
        lengths = jnp.where(jnp.arange(self.batch) < (self.batch + 1) // 2, self.keys, self.keys * 7 // 8)
        rows = chunk_rows(self.keys, lengths, self.chunk_size, self.num_left_chunks)
        start, end = (row[:, self.keys - self.queries :] for row in rows)
        return query * self.head_dim**-0.5, key, value, bias, start, end

    def position_arguments(self, key: Key[Array, ""], dtype: str = "float32") -> dict[str, Array]:
        """Random position_query and position_key."""
        distances = self.keys + self.queries - 1
        sizes = {"position_query": (self.batch, self.queries), "position_key": (distances,)}
        draws = {name: jax.random.normal(key, (*size, self.heads, self.head_dim)) for name, size in sizes.items()}
        return {name: (x * self.head_dim**-0.25).astype(dtype) for name, x in draws.items()}


SHAPES = {
    "stream_words": Shape(1, 16, 80, 4, 36, 64, 16, 4),  # a chunk of 640 ms of configs/words.py
    "train_words": Shape(10, 112, 112, 4, 36, 64, 16, 4),  # its bucket of 4.5 s
    "train_medium": Shape(58, 412, 412, 4, 64, 64, 16, 4),  # width 256, a batch of 960 s, utterances of 16.5 s
    "train_medium_full": Shape(58, 412, 412, 4, 64, 64, 0, -1),
    **{
        f"long_{frames}_{chunk_size}": Shape(32_768 // frames, frames, frames, 4, 64, 64, chunk_size, 4)
        for frames in (1024, 4096, 16_384)
        for chunk_size in (16, 64)
    },
}
