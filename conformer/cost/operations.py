"""The operations of a model, counted from its configuration: arithmetic, parameters, activations, state."""

import dataclasses
import functools
import math

import jax
from flax import nnx

from conformer.config import Config, FeatureConfig, ModelConfig
from conformer.model import ConformerCTC
from conformer.model.layouts.counting import Counting, Operation, Tensor
from conformer.model.layouts.layout import Past
from conformer.model.subsampling import lengths_of


@dataclasses.dataclass(frozen=True)
class Workload:
    """The work of one call: a chunk of each of several streams, or several whole utterances."""

    batch_size: int
    feature_frames: int  # of each, the frames that windows overlap by included
    frames: int  # encoder frames of each, those of the look-ahead included
    past: int  # frames of left context that a stream keeps; 0 for whole utterances
    seconds: float  # of audio, of all of them together
    streaming: bool
    look_ahead: int = 0  # encoder frames at the end of each that are computed again with the next chunk

    @classmethod
    def chunk(
        cls, config: Config, chunk_size: int, num_left_chunks: int, batch_size: int = 1, look_ahead: int = 0
    ) -> "Workload":
        """The next chunk of each of `batch_size` streams, whose left context is full."""
        frames = chunk_size + look_ahead
        window = lengths_of(config.model).window(frames)
        shift = chunk_size * config.model.subsampling_factor
        seconds = batch_size * shift * config.features.frame_shift_ms / 1000
        return cls(batch_size, window, frames, chunk_size * num_left_chunks, seconds, True, look_ahead)

    @classmethod
    def utterance(cls, config: Config, seconds: float, batch_size: int = 1) -> "Workload":
        """Whole utterances of so many seconds each, every frame attending to every other."""
        feature_frames = round(1000 * seconds / config.features.frame_shift_ms)
        lengths = lengths_of(config.model)
        frames = lengths.output_lengths(feature_frames)
        return cls(
            batch_size, feature_frames + sum(lengths.margins(feature_frames)), frames, 0, batch_size * seconds, False
        )


MODULES = ("front end", "feed-forward", "attention", "convolution", "norm", "head")


def operations(config: Config, workload: Workload) -> list[Operation]:
    """All operations of normalisation, encoder, head and log-softmax in their order."""
    layout, model = Counting(config.model.execution).looking_ahead(workload.look_ahead), config.model
    features = Tensor(workload.batch_size, workload.feature_frames, config.features.num_mel_bins)
    pasts = None
    if workload.streaming:
        context, inputs = (Tensor(workload.batch_size, n, model.encoder_dim) for n in _remembered(model, workload))
        pasts = [Past(context, context, inputs)] * model.num_layers
    graphdef, state = _shapes(config.features.num_mel_bins, config.model)

    def count(state: nnx.State) -> None:
        logits, _ = nnx.merge(graphdef, state).logits(features, None, pasts, layout)
        layout.log_softmax(logits)

    jax.eval_shape(count, state)
    return layout.operations


def num_parameters(config: Config) -> int:
    """Trained parameters."""
    return sum(math.prod(param.shape) for param in trained(config))


def trained(config: Config) -> list[jax.ShapeDtypeStruct]:
    """The shapes of the trained arrays."""
    _, state = _shapes(config.features.num_mel_bins, config.model)
    return jax.tree.leaves(nnx.filter_state(state, nnx.Param))


def state_elements(config: Config, workload: Workload) -> int:
    """Elements of one stream's state, the count of its frames left out."""
    context, inputs = _remembered(config.model, workload)
    return config.model.num_layers * config.model.encoder_dim * (2 * context + inputs)


def _remembered(model: ModelConfig, workload: Workload) -> tuple[int, int]:
    """Frames of left context, and of inputs of the convolution."""
    return workload.past, model.kernel_size - 1


@functools.lru_cache(maxsize=64)  # a model is counted many times over
def _shapes(num_mel_bins: int, model: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of the model, and the shapes of its arrays."""
    config = Config(features=FeatureConfig(num_mel_bins=num_mel_bins), model=model)
    return nnx.split(nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0))))
