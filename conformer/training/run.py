"""The parts of a training run: the batches that it reads, and a trainer whose state they update."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from conformer.config import Config
from conformer.data import Batch, TrainLoader, Utterance
from conformer.data.records import Utterances
from conformer.evaluation.offline import Transcripts, make_forward, transcribe
from conformer.features import log_mel
from conformer.filterbank import num_frames
from conformer.model.subsampling import lengths_of
from conformer.tokenizer import Tokenizer
from conformer.training.mesh import make_mesh, on_this_process, partitionable, place_batch, place_state
from conformer.training.state import initial_state
from conformer.training.step import make_train_step
from kernels.typing import Float


def make_loader(config: Config, utterances: Utterances, tokenizer: Tokenizer) -> TrainLoader:
    """Batches for the model that `config` describes. Raises DataError if no utterance is left."""

    def output_frames(seconds: float) -> int:
        frames = num_frames(config.features, int(seconds * config.features.sample_rate))
        return lengths_of(config.model).output_lengths(frames)

    return TrainLoader(config, utterances, tokenizer, output_frames)


def feature_statistics(
    config: Config, utterances: Utterances, tokenizer: Tokenizer, num_batches: int = 8
) -> tuple[Float[np.ndarray, " mel"], Float[np.ndarray, " mel"]]:
    """Computes the mean and standard deviation of each mel bin, over batches of the fully grown curriculum.

    Pauses and background are left out: the logarithms of silence lie far from those of speech.
    """
    speech = config.replace({"augment.background_probability": 0.0, "augment.pause_seconds": 0.0})
    loader = make_loader(speech, utterances, tokenizer)
    extract = jax.jit(lambda audio, lengths: log_mel(config.features, audio, lengths, jax.random.key(0)))
    total = np.zeros((2, config.features.num_mel_bins))
    frames = 0
    for _, batch in loader.batches(config.data.curriculum_steps, num_batches):
        features, lengths = jax.device_get(extract(batch.audio, batch.audio_lengths))
        inside = (np.arange(features.shape[1]) < lengths[:, None]) & (batch.weights[:, None] > 0)
        valid = features[inside].astype(np.float64)
        total += valid.sum(0), np.square(valid).sum(0)
        frames += len(valid)
    mean, square = total / max(frames, 1)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


class Trainer:
    """A model in training: its `state`, and the compiled functions that change it and that evaluate it.

    Args:
        mean: of the training features, a value a mel bin; `std` is their standard deviation.
        mesh: the devices; None = one.
        bigram: of units, where `train.mmi_weight` needs one.
    """

    def __init__(
        self,
        config: Config,
        mean: Float[np.ndarray, " mel"],
        std: Float[np.ndarray, " mel"],
        mesh: Mesh | None = None,
        bigram: Float[np.ndarray, "vocab vocab"] | None = None,
    ):
        self.config = config
        self.mesh = make_mesh(1, jax.devices()[:1]) if mesh is None else mesh
        graphdef, state = initial_state(partitionable(config, self.mesh), mean, std)
        self.state = place_state(self.mesh, state)
        self.step = make_train_step(config, graphdef, self.mesh, bigram)
        self.forward = make_forward(config, graphdef)

    def update(self, batch: Batch, chunk: tuple[np.int32, np.int32]) -> dict[str, jax.Array]:
        """Updates the state by this process's rows of a batch. Returns the step's metrics, perhaps not computed yet.

        `chunk` is chunk_size and num_left_chunks (`draw_chunk`).
        """
        self.state, metrics = self.step(self.state, place_batch(self.mesh, batch), *chunk)
        return metrics

    def transcribe(self, tokenizer: Tokenizer, utterances: Sequence[Utterance]) -> Transcripts:
        """Greedy transcripts with the averaged parameters, computed by this process alone."""
        params, statistics = on_this_process(self.mesh, (self.state.average, self.state.statistics))
        return transcribe(self.config, self.forward, params, statistics, tokenizer, utterances)
