"""The encoder: front end and blocks, over whole utterances or chunks of streams, with the same weights and code."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model import channels_first
from conformer.model.block import Block, Past
from conformer.model.subsampling import Subsampling
from kernels.chunked_attention import chunk_rows
from kernels.typing import Array, Float, Int, Key


class Cache(NamedTuple):
    """The state of a batch of streams: constant shapes, zeros at the start."""

    blocks: tuple[Any, ...]  # one `Past` a block, of `block` or of `channels_first`
    frames: Int[Array, " batch"]  # encoder frames seen by each stream


class Encoder(nnx.Module):
    """Subsampling and `num_layers` Conformer blocks.

    `model.execution` chooses the layout of everything inside: (batch, frames, channels), or the accelerators' own
    (`channels_first`). Parameters, arguments and results are the same; the state of a stream has another shape.
    """

    def __init__(self, config: ModelConfig, num_mel_bins: int, *, compute: str = "float32", rngs: nnx.Rngs):
        self.config = config
        self.subsampling = Subsampling(config, num_mel_bins, compute=compute, rngs=rngs)
        self.blocks = nnx.List([Block(config, compute=compute, rngs=rngs) for _ in range(config.num_layers)])

    def __call__(
        self,
        features: Float[Array, "batch time mel"],
        lengths: Int[Array, " batch"],
        *,
        chunk_size: int | Int[Array, ""] = 0,
        num_left_chunks: int | Int[Array, ""] = -1,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch frames channels"], Int[Array, " batch"]]:
        """Encodes whole utterances under a chunk mask.

        Args:
            features: normalised log-mel frames.
            lengths: valid feature frames of each utterance.
            chunk_size: encoder frames that see each other; 0 = the whole utterance. May be traced, as may
            num_left_chunks: chunks before it that are seen too; negative = all. Where both are Python integers that
                limit the context, attention takes time and memory for that context alone.
            dropout_key: turns dropout on.

        Returns:
            encoder frames and the valid number of them.
        """
        arguments = {"chunk_size": chunk_size, "num_left_chunks": num_left_chunks, "dropout_key": dropout_key}
        outputs, lengths = self.outputs(features, lengths, **arguments)
        return outputs[-1], lengths

    def outputs(
        self,
        features: Float[Array, "batch time mel"],
        lengths: Int[Array, " batch"],
        *,
        chunk_size: int | Int[Array, ""] = 0,
        num_left_chunks: int | Int[Array, ""] = -1,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[list[Float[Array, "batch frames channels"]], Int[Array, " batch"]]:
        """As a call, but the frames that leave each block, first to last: what an intermediate loss needs."""
        if self.config.execution == "channels_first":
            arguments = (features, lengths, chunk_size, num_left_chunks, dropout_key)
            return channels_first.encode(self.subsampling, self.blocks, *arguments)
        x, lengths = self.subsampling(features), self.subsampling.output_lengths(lengths)
        key_start, key_end = chunk_rows(x.shape[1], lengths, chunk_size, num_left_chunks)
        inside = jnp.arange(x.shape[1]) < lengths[:, None]
        chunks = None
        if isinstance(chunk_size, int) and isinstance(num_left_chunks, int) and chunk_size > 0 and num_left_chunks >= 0:
            chunks = chunk_size, num_left_chunks
        outputs = []
        for index, block in enumerate(self.blocks):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            x, _ = block(x, key_start, key_end, inside, chunks=chunks, dropout_key=key)
            outputs.append(x)
        return outputs, lengths

    def initial_cache(self, batch_size: int, chunk_size: int, num_left_chunks: int) -> Cache:
        """The state before the first chunk; num_left_chunks is at least 0 and fixes the size of the state."""
        config = self.config
        if not config.causal_conv:
            raise ValueError("a model with model.causal_conv=False looks ahead and cannot stream: train a causal one")
        if chunk_size < 1 or num_left_chunks < 0:
            raise ValueError(
                f"chunk_size={chunk_size}, num_left_chunks={num_left_chunks}: a stream needs at least 1 and at least 0"
            )
        heads, left, frames = config.num_heads, chunk_size * num_left_chunks, jnp.zeros(batch_size, jnp.int32)
        if config.execution == "channels_first":
            return Cache(channels_first.initial_cache(config, batch_size, left), frames)
        past = Past(
            attention=jnp.zeros((batch_size, 2 * heads, left, config.encoder_dim // heads)),
            convolution=jnp.zeros((batch_size, config.kernel_size - 1, config.encoder_dim)),
        )
        return Cache(blocks=(past,) * config.num_layers, frames=frames)

    def step(
        self,
        cache: Cache,
        window: Float[Array, "batch window mel"],
        num_frames: Int[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch frames channels"], Cache]:
        """Encodes the next chunk of each stream.

        Args:
            cache: from `initial_cache` or the previous step; streams may be at different positions.
            window: normalised features, `subsampling.window(chunk_size)` of them; the next window starts
                chunk_size * subsampling_factor frames later.
            num_frames: valid encoder frames of each stream's chunk; fewer than all only in its last. None = all.

        Returns:
            chunk_size encoder frames, equal to the masked full pass, and the next cache.
        """
        if self.config.execution == "channels_first":
            arguments = (cache.blocks, window, cache.frames, num_frames)
            x, pasts = channels_first.step(self.subsampling, self.blocks, *arguments)
            chunk_size = x.shape[1]
            return x, Cache(pasts, cache.frames + (chunk_size if num_frames is None else num_frames))
        x = self.subsampling(window)
        batch, chunk_size = x.shape[:2]
        left = cache.blocks[0].attention.shape[2]
        num_frames = jnp.full(batch, chunk_size) if num_frames is None else num_frames
        inside = jnp.arange(chunk_size) < num_frames[:, None]
        rows = (batch, chunk_size)
        key_start = jnp.broadcast_to(left - jnp.minimum(cache.frames, left)[:, None], rows)
        key_end = jnp.broadcast_to(left + num_frames[:, None], rows)
        pasts = []
        for block, past in zip(self.blocks, cache.blocks, strict=True):
            x, (key_value, inputs) = block(x, key_start, key_end, inside, past)
            pasts.append(Past(key_value[:, :, chunk_size:], inputs[:, chunk_size:]))
        return x, Cache(tuple(pasts), cache.frames + num_frames)
