"""The encoder: front end and blocks, over whole utterances or chunks of streams, with the same weights and code."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.block import Block
from conformer.model.layouts import EXECUTIONS
from conformer.model.layouts.layout import Frames, Inside, Layout, Past, Seen
from conformer.model.norm import LayerNorm
from conformer.model.positions import known_sinusoids, sinusoids
from conformer.model.subsampling import make_subsampling
from kernels.chunked_attention import chunk_rows
from kernels.typing import Array, Float, Int, Key


class Cache(NamedTuple):
    """The state of a batch of streams: constant shapes, zeros at the start."""

    blocks: tuple[Past, ...]
    frames: Int[Array, " batch"]  # encoder frames seen by each stream


class Encoder(nnx.Module):
    """Subsampling and `num_layers` Conformer blocks, and one more norm where `model.final_norm` says so.

    `model.execution` chooses the layout of everything inside. Parameters, arguments and results are the same; the state
    of a stream has another shape.
    """

    def __init__(self, config: ModelConfig, num_mel_bins: int, *, compute: str = "float32", rngs: nnx.Rngs):
        self.layout = EXECUTIONS[config.execution]
        self.causal = config.causal_conv
        self.absolute = config.positions == "absolute"
        self.past_sizes = config.kernel_size - 1, config.num_heads, config.encoder_dim
        self.subsampling = make_subsampling(config, num_mel_bins, compute=compute, rngs=rngs)
        self.blocks = nnx.List([Block(config, compute=compute, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = LayerNorm(config.encoder_dim, config) if config.final_norm else nnx.data(None)

    def __call__(
        self,
        features: Float[Array, "batch time mel"],
        lengths: Int[Array, " batch"],
        *,
        chunk_size: int | Int[Array, ""] | Int[Array, "batch 1"] = 0,
        num_left_chunks: int | Int[Array, ""] | Int[Array, "batch 1"] = -1,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch frames channels"], Int[Array, " batch"]]:
        """Encodes whole utterances under a chunk mask.

        Args:
            features: normalised log-mel frames.
            lengths: valid feature frames of each utterance.
            chunk_size: encoder frames that see each other; 0 = the whole utterance. May be traced. An array (batch, 1)
                holds one for each utterance.
            num_left_chunks: chunks before it that are seen too; negative = all. It takes the same forms. Where both
                are Python integers that limit the context, attention takes time and memory for that context alone.
            dropout_key: turns dropout on, and BatchNorm to the statistics of the batch.

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
        chunk_size: int | Int[Array, ""] | Int[Array, "batch 1"] = 0,
        num_left_chunks: int | Int[Array, ""] | Int[Array, "batch 1"] = -1,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[list[Float[Array, "batch frames channels"]], Int[Array, " batch"]]:
        """Encodes as a call does, but returns the outputs of all blocks, first to last, for intermediate losses."""
        front_end, longest = self.subsampling, features.shape[1]
        front_end.check(longest)
        heard = None
        if front_end.lead:
            margins = ((0, 0), front_end.margins(longest), (0, 0))
            inside = (jnp.arange(longest) < lengths[:, None])[..., None]
            features, heard = (jnp.pad(a, margins) for a in (features, inside.astype(features.dtype)))
        lengths = front_end.output_lengths(lengths)
        num_frames = front_end.output_lengths(longest)
        rows = chunk_rows(num_frames, lengths, chunk_size, num_left_chunks)
        chunks = None
        if isinstance(chunk_size, int) and isinstance(num_left_chunks, int) and chunk_size > 0 and num_left_chunks >= 0:
            chunks = chunk_size, num_left_chunks
        seen = self.layout.seen(*rows, num_frames, chunks)
        inside = self.layout.inside(jnp.arange(num_frames) < lengths[:, None])
        positions = None
        if self.absolute:
            rows = known_sinusoids(np.arange(num_frames), self.past_sizes[2])
            positions = self.layout.from_sequence(jnp.asarray(rows)[None])
        outputs, _ = self.run(features, seen, inside, None, self.layout, dropout_key, heard, positions)
        return [self.layout.to_sequence(x) for x in outputs], lengths

    def run(
        self,
        features: Any,
        seen: Seen,
        inside: Inside,
        pasts: Sequence[Past] | None,
        layout: Layout,
        dropout_key: Key[Array, ""] | None = None,
        heard: Any = None,
        positions: Frames | None = None,
    ) -> tuple[list[Frames], list[Past]]:
        """The network itself, in any layout: the frames that leave each block, and what a stream remembers of each.

        The frames of the layout's look-ahead are computed with the others, but neither remembered nor returned.

        Args:
            features: normalised.
            pasts: the state of each block; None = whole utterances.
            heard: which feature frames lie inside their utterance, for a padded front end; None = all but those of
                zeros alone.
            positions: see `Attention`.
        """
        with layout.scope("front end"):
            if self.subsampling.lead:
                heard = layout.image(layout.heard(features) if heard is None else heard)
            x = self.subsampling(layout.image(features), layout, heard)
        outputs, new_pasts = [], []
        for index, block in enumerate(self.blocks):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            x, past = block(x, seen, inside, None if pasts is None else pasts[index], layout, key, positions)
            outputs.append(x)
            new_pasts.append(past)
        if self.final_norm is not None:
            with layout.scope("norm"):
                outputs[-1] = layout.norm(self.final_norm, outputs[-1])
        if layout.look_ahead:
            outputs[-1] = layout.settled(outputs[-1])
        return outputs, new_pasts

    def initial_cache(self, batch_size: int, chunk_size: int, num_left_chunks: int) -> Cache:
        """The state before the first chunk; num_left_chunks is at least 0 and fixes the size of the state."""
        if not self.causal:
            raise ValueError("a model with model.causal_conv=False looks ahead and cannot stream: train a causal one")
        if chunk_size < 1 or num_left_chunks < 0:
            raise ValueError(
                f"chunk_size={chunk_size}, num_left_chunks={num_left_chunks}: a stream needs at least 1 and at least 0"
            )
        shapes = self.layout.past_shapes(batch_size, chunk_size * num_left_chunks, *self.past_sizes)
        past = Past(*map(jnp.zeros, shapes))
        return Cache((past,) * len(self.blocks), jnp.zeros(batch_size, jnp.int32))

    def step(
        self,
        cache: Cache,
        window: Float[Array, "batch window mel"],
        num_frames: Int[Array, " batch"] | None = None,
        look_ahead: int = 0,
    ) -> tuple[Float[Array, "batch frames channels"], Cache]:
        """Encodes the next chunk of each stream.

        With `look_ahead`, the chunk also sees the frames that come after it. They are computed for that alone, and
        computed again as a part of the next chunk, when they see what comes after them.

        Args:
            cache: from `initial_cache` or the previous step; streams may be at different positions.
            window: normalised features, `subsampling.window(chunk_size + look_ahead)` of them; the next window starts
                chunk_size * subsampling_factor frames later. The first begins `subsampling.lead` frames early, and
                frames outside the utterance are zeros, where the front end is padded.
            num_frames: valid encoder frames of each stream's window; fewer than all only at its end. None = all.
            look_ahead: encoder frames at the end of the window that the chunk looks ahead to.

        Returns:
            chunk_size encoder frames, without look-ahead equal to the masked full pass, and the next cache.
        """
        self.subsampling.check(window.shape[1])
        batch, size = len(window), self.subsampling.chunk(window.shape[1])
        layout = self.layout.looking_ahead(look_ahead)
        left = layout.left_context(cache.blocks[0])
        num_frames = jnp.full(batch, size) if num_frames is None else num_frames
        rows = (batch, size)
        key_start = jnp.broadcast_to(left - jnp.minimum(cache.frames, left)[:, None], rows)
        key_end = jnp.broadcast_to(left + num_frames[:, None], rows)
        seen = layout.seen(key_start, key_end, left + size, None)
        inside = layout.inside(jnp.arange(size) < num_frames[:, None])
        positions = None
        if self.absolute:
            frames = cache.frames[:, None] + jnp.arange(-left, size)
            positions = layout.from_sequence(sinusoids(frames.astype(jnp.float32), self.past_sizes[2]))
        outputs, pasts = self.run(window, seen, inside, cache.blocks, layout, positions=positions)
        settled = jnp.minimum(num_frames, size - look_ahead)
        return layout.to_sequence(outputs[-1]), Cache(tuple(pasts), cache.frames + settled)
