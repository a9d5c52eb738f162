"""The twin of `conformer/model/` in eager PyTorch: same architecture, parameters and masks.

Written for speed in eager mode on the CPU. Where PyTorch has several ways, the faster one was taken: the front end runs
in channels_last (1.2 to 1.7 times faster than NCHW), and attention is an explicit softmax, because
scaled_dot_product_attention with a bias that needs a gradient falls back to the same products and is no faster.
"""

# pyright: reportMissingImports=false

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = {4: ((3, 2), (3, 2)), 6: ((3, 2), (5, 3)), 8: ((3, 2), (3, 2), (3, 2))}  # (taps, stride) of each convolution
MASKED = -1e30  # finite: a row without any key must not become NaN


class Past(NamedTuple):
    """The state that a block keeps of a stream."""

    attention: Tensor  # keys and values of the left context, (batch, past, 2 * encoder_dim)
    convolution: Tensor  # newest inputs of the depthwise convolution, (batch, kernel_size - 1, encoder_dim)


class Cache(NamedTuple):
    """The state of a batch of streams at the same position: constant shapes, zeros at the start."""

    blocks: tuple[Past, ...]
    frames: Tensor  # encoder frames seen, an integer


class ConformerCTC(nn.Module):
    """log-mel features -> per-frame logits over the units, blank first.

    Args:
        config: the fields of `conformer.config.ModelConfig`.
        num_mel_bins: features per frame.
    """

    def __init__(self, config: SimpleNamespace, num_mel_bins: int):
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(num_mel_bins))
        self.register_buffer("feature_scale", torch.ones(num_mel_bins))
        self.encoder = Encoder(config, num_mel_bins)
        self.head = nn.Linear(config.encoder_dim, config.vocab_size)

    def forward(
        self, features: Tensor, lengths: Tensor, chunk_size: int = 0, num_left_chunks: int = -1
    ) -> tuple[Tensor, Tensor]:
        """Logits (batch, frames, vocab) of features (batch, time, mel), and the valid frames of each utterance."""
        features = (features - self.feature_mean) * self.feature_scale
        x, lengths = self.encoder(features, lengths, chunk_size, num_left_chunks)
        return self.head(x), lengths

    def step(self, cache: Cache, window: Tensor) -> tuple[Tensor, Cache]:
        """Log-probabilities of the next chunk of each stream, and the next cache."""
        x, cache = self.encoder.step(cache, (window - self.feature_mean) * self.feature_scale)
        return self.head(x).log_softmax(dim=-1), cache


class Encoder(nn.Module):
    """Subsampling and `num_layers` Conformer blocks."""

    def __init__(self, config: SimpleNamespace, num_mel_bins: int):
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(config, num_mel_bins)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))

    def forward(
        self, features: Tensor, lengths: Tensor, chunk_size: int, num_left_chunks: int
    ) -> tuple[Tensor, Tensor]:
        x = self.subsampling(features)
        lengths = self.subsampling.output_lengths(lengths)
        frames = torch.arange(x.shape[1])
        outside = frames >= lengths[:, None]
        masked = outside[:, None, :]
        if chunk_size > 0:
            chunk = frames // chunk_size
            masked = masked | (chunk > chunk[:, None])
            if num_left_chunks >= 0:
                masked = masked | (chunk < chunk[:, None] - num_left_chunks)
        # Both are the same for all blocks: made once.
        mask = torch.zeros(masked.shape).masked_fill_(masked, MASKED)[:, None]
        distance = self._distance(frames, frames)
        for block in self.blocks:
            x, _ = block(x, mask, distance, outside[..., None])
        return x, lengths

    def initial_cache(self, batch_size: int, chunk_size: int, num_left_chunks: int) -> Cache:
        """The state before the first chunk."""
        past = Past(
            torch.zeros(batch_size, chunk_size * num_left_chunks, 2 * self.config.encoder_dim),
            torch.zeros(batch_size, self.config.kernel_size - 1, self.config.encoder_dim),
        )
        return Cache((past,) * len(self.blocks), torch.zeros((), dtype=torch.int64))

    def step(self, cache: Cache, window: Tensor) -> tuple[Tensor, Cache]:
        """Encodes the next chunk, all of whose frames are valid, of streams at the same position."""
        x = self.subsampling(window)
        chunk_size, left = x.shape[1], cache.blocks[0].attention.shape[1]
        keys = torch.arange(left + chunk_size)
        mask = torch.zeros(left + chunk_size).masked_fill_(keys < left - cache.frames, MASKED)
        distance = self._distance(keys[left:], keys)
        pasts = []
        for block, past in zip(self.blocks, cache.blocks, strict=True):
            x, (key_value, inputs) = block(x, mask, distance, past=past)
            pasts.append(Past(key_value[:, chunk_size:], inputs[:, chunk_size:]))
        return x, Cache(tuple(pasts), cache.frames + chunk_size)

    def _distance(self, queries: Tensor, keys: Tensor) -> Tensor:
        limit = self.config.max_relative_distance
        return (queries[:, None] - keys).clamp(-limit, limit) + limit


class Subsampling(nn.Module):
    """Strided convolutions over (time, frequency), then a linear map to the encoder's width."""

    def __init__(self, config: SimpleNamespace, num_mel_bins: int):
        super().__init__()
        channels, bins = config.subsampling_channels, num_mel_bins
        self.strides = STAGES[config.subsampling_factor]
        self.stages = nn.ModuleList()
        for index, (taps, stride) in enumerate(self.strides):
            if index > 0 and config.subsampling == "depthwise_separable":
                self.stages.append(SeparableConv(channels, taps, stride))
            else:
                self.stages.append(nn.Conv2d(channels if index else 1, channels, taps, stride))
            bins = (bins - taps) // stride + 1
        self.projection = nn.Linear(bins * channels, config.encoder_dim)
        self.to(memory_format=torch.channels_last)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        for taps, stride in self.strides:
            lengths = torch.div(lengths - taps, stride, rounding_mode="floor") + 1
        return lengths.clamp(min=0)

    def forward(self, features: Tensor) -> Tensor:
        x = features[:, None].contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = F.relu(stage(x))
        return self.projection(x.permute(0, 2, 3, 1).flatten(2))


class SeparableConv(nn.Module):
    """A depthwise convolution over (time, frequency) and a linear map over channels."""

    def __init__(self, channels: int, taps: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, taps, stride, groups=channels, bias=False)
        self.pointwise = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """x += FF/2;  x += attention;  x += convolution;  x += FF/2;  LayerNorm."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.first_feed_forward = FeedForward(config)
        self.attention = Attention(config)
        self.convolution = Convolution(config)
        self.second_feed_forward = FeedForward(config)
        self.norm = nn.LayerNorm(config.encoder_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor, distance: Tensor, outside: Tensor | None = None, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        x = x + 0.5 * self.dropout(self.first_feed_forward(x))
        attended, key_value = self.attention(x, mask, distance, past.attention if past else None)
        x = x + self.dropout(attended)
        convolved, inputs = self.convolution(x, outside, past.convolution if past else None)
        x = x + self.dropout(convolved)
        x = x + 0.5 * self.dropout(self.second_feed_forward(x))
        return self.norm(x), Past(key_value, inputs)


class FeedForward(nn.Module):
    """The position-wise feed-forward module."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.norm = nn.LayerNorm(config.encoder_dim)
        self.expand = nn.Linear(config.encoder_dim, config.feed_forward_dim)
        self.contract = nn.Linear(config.feed_forward_dim, config.encoder_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.silu(self.expand(self.norm(x))))


class Attention(nn.Module):
    """Multi-head self-attention with a learned bias for each relative position."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.encoder_dim)
        self.query_key_value = nn.Linear(config.encoder_dim, 3 * config.encoder_dim)
        self.output = nn.Linear(config.encoder_dim, config.encoder_dim)
        self.relative_bias = nn.Parameter(torch.zeros(config.num_heads, 2 * config.max_relative_distance + 1))

    def forward(self, x: Tensor, mask: Tensor, distance: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, and keys and values of `past` and x together."""
        dim = x.shape[-1]
        query, key_value = self.query_key_value(self.norm(x)).split([dim, 2 * dim], dim=-1)
        if past is not None:
            key_value = torch.cat([past, key_value], dim=1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, *key_value.chunk(2, dim=-1))
        )
        # index_select: its gradient is many times faster than that of plain indexing.
        bias = self.relative_bias.index_select(1, distance.flatten()).unflatten(1, distance.shape)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + (mask + bias)
        return self.output((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)), key_value


class Convolution(nn.Module):
    """A gated point-wise layer, a depthwise convolution in time, a point-wise layer."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        dim, context = config.encoder_dim, config.kernel_size - 1
        self.padding = (context, 0) if config.causal_conv else (context // 2, context // 2)
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, config.kernel_size, groups=dim, bias=False)
        self.middle_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, outside: Tensor | None = None, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, and the depthwise convolution's inputs: `past` and those of x."""
        inputs = F.glu(self.gate(self.norm(x)))
        if outside is not None:
            inputs = inputs.masked_fill(outside, 0.0)
        if past is not None:
            inputs = torch.cat([past, inputs], dim=1)
        padded = inputs.transpose(1, 2) if past is not None else F.pad(inputs.transpose(1, 2), self.padding)
        y = self.depthwise(padded).transpose(1, 2)
        return self.output(F.silu(self.middle_norm(y))), inputs


def load_weights(model: ConformerCTC, arrays: dict[str, np.ndarray]) -> None:
    """Copies the JAX model's arrays (see `benchmarks.peers.flat_weights`) into the twin.

    Raises:
        ValueError: an array is missing, left over, or of another shape.
    """
    unused = set(arrays)
    for name, tensor in model.state_dict().items():
        source = _jax_name(name, tensor)
        if source not in arrays:
            raise ValueError(f"{source} is not among the exported weights: is the twin's configuration the model's?")
        array = _torch_layout(name, arrays[source])
        if array.shape != tensor.shape:
            raise ValueError(f"{source} has shape {array.shape}, but the twin's {name} has {tuple(tensor.shape)}")
        tensor.copy_(torch.from_numpy(array.copy()))
        unused.remove(source)
    if unused:
        raise ValueError(f"the twin has no place for {sorted(unused)}")


def _jax_name(name: str, tensor: Tensor) -> str:
    is_norm = name.endswith(".weight") and tensor.ndim == 1
    return name.replace(".depthwise", "").replace(".weight", ".scale" if is_norm else ".kernel")


def _torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Output channels first: (in, out) -> (out, in), (taps.., channels) -> (channels, 1, taps..), HWIO -> OIHW."""
    if not name.endswith(".weight"):
        return array
    if ".depthwise." in name:
        return np.moveaxis(array, -1, 0)[:, None]
    return np.transpose(array, (3, 2, 0, 1)) if array.ndim == 4 else array.T
