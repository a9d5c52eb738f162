"""Recognition of whole utterances in batches, for eval.py and for the evaluations during training."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from conformer.config import Config
from conformer.data import Utterance, eval_batches
from conformer.decode.alternatives import Alternative, alternatives
from conformer.decode.confidence import Peaks, group_words
from conformer.decode.greedy import Decoder, GreedyDecoder, Token
from conformer.evaluation.scorer import Score, ScoreError, score
from conformer.features import log_mel
from conformer.filterbank import trailing_samples
from conformer.tokenizer import Tokenizer
from kernels.typing import Float

_SHOWN = 3  # utterances that an error lists


class Heard(NamedTuple):
    """The results for one utterance, beside its text."""

    words: list[str]
    evidence: Float[np.ndarray, " words"]  # see `Peaks.evidence`
    tokens: list[Token]
    alternatives: list[Alternative]


class Transcripts(NamedTuple):
    """The results for a list of utterances."""

    utterances: list[Utterance]  # those that could be read, in the order of `texts`
    texts: list[str]
    broken: dict[str, str]  # id -> message of those that could not
    level: str  # of `normalise`, at which they are scored
    heard: Sequence[Heard] = ()  # of whole utterances, in the order of `texts`
    decoding: float = 0.0  # seconds from log-probabilities to texts, of whole utterances

    def score(self) -> Score:
        """Error rates against the utterances' own transcripts. Raises ScoreError where none could be read."""
        if self.broken and not self.utterances:
            first = "; ".join(list(self.broken.values())[:_SHOWN])
            raise ScoreError(f"none of the {len(self.broken)} utterances can be read, as in {first}")
        return score([utterance.text for utterance in self.utterances], self.texts, self.level)


@dataclasses.dataclass
class Clock:
    """Times the network on batches, in seconds: features included; reading of audio and compilation left out."""

    audio: float = 0.0  # of the utterances, without what fills a batch up
    compute: float = 0.0

    def real_time_factor(self, transcripts: Transcripts) -> float:
        """Computation per second of audio, decoding included."""
        return (self.compute + transcripts.decoding) / self.audio


def make_forward(config: Config, graphdef: nnx.GraphDef) -> Callable:
    """forward(params, statistics, audio, audio_lengths, chunk_size, num_left_chunks) -> (log_probs, lengths).

    Compiled for each chunk_size and num_left_chunks, so that attention is computed within them alone.
    """

    @jax.jit(static_argnums=(4, 5))
    def forward(params, statistics, audio, audio_lengths, chunk_size, num_left_chunks):
        model = nnx.merge(graphdef, params, statistics)
        features, lengths = log_mel(config.features, audio, audio_lengths)
        logits, lengths = model(features, lengths, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
        return model.log_softmax(logits), lengths

    return forward


def posteriors(
    config: Config,
    forward: Callable,
    params: nnx.State,
    statistics: nnx.State,
    utterances: Sequence[Utterance],
    broken: dict[str, str],
    clock: Clock | None = None,
    /,
    *,
    chunk_size: int | None = None,
    num_left_chunks: int = -1,
) -> Iterator[tuple[Utterance, Float[np.ndarray, "frames vocab"]]]:
    """Log-probabilities of whole utterances and the silence behind them, under the mask of a stream's chunks if asked.

    Without a `chunk_size`, attention is what `Config.whole_context` says. An utterance that cannot be read is left out:
    its message is put into `broken`, by id. With a `clock`, the first batch of each shape is computed twice, so that it
    is not timed while it is compiled.
    """
    if chunk_size is None:
        chunk_size, num_left_chunks = config.whole_context
    compiled = set()
    for rows, batch in eval_batches(config, utterances, broken):
        silence = trailing_samples(config.features, batch.audio_lengths)
        audio = np.pad(batch.audio, ((0, 0), (0, silence.max())))
        arguments = (audio, batch.audio_lengths + silence, chunk_size, num_left_chunks)
        if clock is not None and audio.shape not in compiled:
            jax.block_until_ready(forward(params, statistics, *arguments))
            compiled.add(audio.shape)
        start = time.perf_counter()
        log_probs, lengths = jax.device_get(forward(params, statistics, *arguments))
        if clock is not None:
            clock.compute += time.perf_counter() - start
            clock.audio += float(batch.audio_lengths @ batch.weights) / config.features.sample_rate
        for row, utterance in enumerate(rows):
            yield utterance, log_probs[row, : lengths[row]]


def decode(
    heard: Iterable[tuple[Utterance, Float[np.ndarray, "_frames vocab"]]],
    broken: dict[str, str],
    tokenizer: Tokenizer,
    decoder: Callable[[], Decoder] = GreedyDecoder,
    num_alternatives: int = 0,
) -> Transcripts:
    """The transcripts of what `posteriors` yields, or has yielded."""
    done, texts, details, seconds = [], [], [], 0.0
    for utterance, log_probs in heard:
        start = time.perf_counter()
        search, peaks = decoder(), Peaks()
        search.step(log_probs)
        tokens = search.finish()
        texts.append(tokenizer.decode([token.id for token in tokens]))
        seconds += time.perf_counter() - start
        peaks.add(log_probs)
        words = group_words(tokens, tokenizer)
        evidence = peaks.evidence([group for _, group in words])
        others = alternatives(search, tokenizer, num_alternatives)
        done.append(utterance)
        details.append(Heard([text for text, _ in words], evidence, tokens, others))
    return Transcripts(done, texts, broken, tokenizer.level, details, seconds)


def transcribe(
    config: Config,
    forward: Callable,
    params: nnx.State,
    statistics: nnx.State,
    tokenizer: Tokenizer,
    utterances: Sequence[Utterance],
) -> Transcripts:
    """Greedy transcripts of whole utterances."""
    broken: dict[str, str] = {}
    return decode(posteriors(config, forward, params, statistics, utterances, broken), broken, tokenizer)
