"""Sizes of real models, for tests and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.typing import Array, Key


class Shape(NamedTuple):
    rows: int
    keys: int

    def arguments(self, key: Key[Array, ""], dtype: str = "float32") -> tuple[Array, Array]:
        """Random scores, and a mask that hides the last quarter of the keys of every second row."""
        seen = jnp.where(jnp.arange(self.rows) % 2 == 0, self.keys, self.keys * 3 // 4)
        return jax.random.normal(key, self).astype(dtype) * 3, jnp.arange(self.keys) < seen[:, None]


SHAPES = {
    "stream_words": Shape(64, 80),  # 4 heads, a chunk of 16 queries, 80 keys
    "train_words": Shape(4_480, 112),
    "rows_256": Shape(65_536, 256),
    "rows_512": Shape(65_536, 512),
    "rows_1024": Shape(65_536, 1_024),
}
