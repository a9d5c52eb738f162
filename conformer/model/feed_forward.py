"""The position-wise feed-forward module; a block has two, each added at half weight (macaron)."""

from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layouts.layout import Frames, Layout
from conformer.model.linear import linear
from conformer.model.norm import LayerNorm


class FeedForward(nnx.Module):
    """y = (swish(LayerNorm(x) W1 + b1) W2 + b2) / 2 (Gulati et al., 2020, section 2.3)."""

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.encoder_dim, config)
        self.expand = linear(config.encoder_dim, config.feed_forward_dim, compute=compute, rngs=rngs)
        self.contract = linear(config.feed_forward_dim, config.encoder_dim, compute=compute, rngs=rngs)

    def __call__(self, x: Frames, layout: Layout) -> Frames:
        hidden = layout.swish(layout.linear(self.expand, layout.norm(self.norm, x)))
        return layout.linear(self.contract, hidden, scale=0.5)
