"""A front end without a convolution: one product of matrices an encoder frame."""

from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layouts.layout import Frames, Image, Layout
from conformer.model.linear import linear
from conformer.model.subsampling import Subsampling


class Stacked(Subsampling):
    """y_n = W [x_{kn}, ..., x_{kn + k - 1}] + b: the k feature frames of one encoder frame, then a linear map.

    It has k * num_mel_bins * encoder_dim multiply-accumulates an encoder frame, and no other operation. Windows do not
    overlap.
    """

    def __init__(self, config: ModelConfig, num_mel_bins: int, *, compute: str, rngs: nnx.Rngs):
        super().__init__(config)
        inputs = self.subsampling_factor * num_mel_bins
        self.projection = linear(inputs, config.encoder_dim, compute=compute, rngs=rngs)

    @staticmethod
    def right_context_of(subsampling_factor: int) -> int:
        return subsampling_factor - 1

    def __call__(self, x: Image, layout: Layout, heard: Image | None = None) -> Frames:
        del heard  # it is not padded
        return layout.linear(self.projection, layout.flatten(layout.stack(x, self.subsampling_factor)))
