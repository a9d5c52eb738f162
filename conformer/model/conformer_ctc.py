"""The whole network: normalisation, encoder, CTC head."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from conformer.config import Config
from conformer.model.encoder import Encoder
from conformer.model.layouts import SEQUENCE
from conformer.model.layouts.layout import Frames, Inside, Layout, Past, Seen
from conformer.model.linear import linear
from kernels.lut_softmax import log_softmax
from kernels.typing import Array, Float, Int


class FeatureStatistic(nnx.Variable):
    """A statistic of the training features: part of the model, not trained."""


class ConformerCTC(nnx.Module):
    """log-mel features -> per-frame logits over the units, blank first.

    Args:
        config: the experiment; `features.num_mel_bins` and `model` are used. `model.vocab_size` must be filled in.
        compute: format of the matrix products; parameters and accumulation stay float32.
        rngs: parameter initialisation.
    """

    def __init__(self, config: Config, *, compute: str = "float32", rngs: nnx.Rngs):
        if config.model.vocab_size < 2:
            raise ValueError(
                f"model.vocab_size={config.model.vocab_size}: fill it in from the tokenizer, blank included"
            )
        bins = config.features.num_mel_bins
        self.feature_mean = FeatureStatistic(jnp.zeros(bins))
        self.feature_scale = FeatureStatistic(jnp.ones(bins))  # 1 / standard deviation
        self.encoder = Encoder(config.model, bins, compute=compute, rngs=rngs)
        # The head feeds the float32 island of loss and decoder.
        self.head = linear(config.model.encoder_dim, config.model.vocab_size, compute="float32", rngs=rngs)
        self.log_softmax = log_softmax  # of logits: what decoders read

    def standardise(self, features: Any, layout: Layout = SEQUENCE, heard: Any = None) -> Any:
        """Global mean and variance normalisation: unlike an utterance's own, it can stream."""
        standardised = layout.standardise(features, self.feature_mean[...], self.feature_scale[...])
        # What lies outside the utterance stays zero: a padded front end tells it by that.
        if not self.encoder.subsampling.lead:
            return standardised
        return layout.weigh(standardised, layout.heard(features) if heard is None else heard)

    def logits(
        self,
        features: Any,
        seen: Seen,
        pasts: Sequence[Past] | None,
        layout: Layout,
        positions: Frames | None = None,
        inside: Inside = None,
        heard: Any = None,
    ) -> tuple[Any, list[Past]]:
        """The whole network in any layout: logits of features not yet normalised, and the next state of each block.

        Args:
            pasts, positions, inside, heard: as `Encoder.run`.
        """
        with layout.scope("front end"):
            features = self.standardise(features, layout, heard)
        outputs, pasts = self.encoder.run(features, seen, inside, pasts, layout, heard=heard, positions=positions)
        with layout.scope("head"):
            return layout.linear(self.head, outputs[-1]), pasts

    def __call__(
        self,
        features: Float[Array, "batch time mel"],
        lengths: Int[Array, " batch"],
        *,
        chunk_size: int | Int[Array, ""] = 0,
        num_left_chunks: int | Int[Array, ""] = -1,
    ) -> tuple[Float[Array, "batch frames vocab"], Int[Array, " batch"]]:
        """Logits of whole utterances and the valid number of them; as `Encoder`, of features not yet normalised."""
        x, lengths = self.encoder(
            self.standardise(features), lengths, chunk_size=chunk_size, num_left_chunks=num_left_chunks
        )
        return self.head(x), lengths
