"""Confidence: its calibration error, and speech of other words than the model's, rejected by it.

The calibration is fitted on the dev split, and so is the threshold: the highest that loses at most LOST of the right
words. Test is used once. Everything is heard as a stream hears it, but faster (`eval.py --masked`), and decoded by the
search that is kept beside the model, as `transcribe.py` does.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from flax import nnx

from conformer.data import Utterance, in_splits, load_manifest, load_utterances
from conformer.decode.confidence import UNCALIBRATED, Confidence
from conformer.decode.greedy import Decoder
from conformer.decode.search import make_decoding, read_lm, search_beside
from conformer.evaluation.confidence import calibration_error, fit, judge, right_words
from conformer.evaluation.offline import decode, make_forward, posteriors
from conformer.lengths import Lengths
from conformer.streaming import EndpointConfig, Framing, Transcript
from conformer.tokenizer import Tokenizer
from conformer.training.checkpoint import load_model

CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4
SPLITS = ("dev", "test")
LOST = 0.02  # of the right words of dev, at most


def run(workdir: str | pathlib.Path, source: str | pathlib.Path | None, outside: str | pathlib.Path | None) -> dict:
    """`bench.py confidence`.

    Args:
        source: speech of the model's words; None = the data of its run.
        outside: speech of other words; None = nothing is rejected.
    """
    config, model, units, step = load_model(workdir)
    search = search_beside(pathlib.Path(workdir), {})
    tokenizer, decoder = make_decoding(search, units, read_lm(search, units))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    forward = make_forward(config, graphdef)
    factor = config.model.subsampling_factor
    framing = Framing(config.features, Lengths(factor, factor - 1), CHUNK_SIZE)

    def hear(utterances: Sequence[Utterance]) -> Iterator[tuple[Utterance, np.ndarray]]:
        context = dict(chunk_size=CHUNK_SIZE, num_left_chunks=NUM_LEFT_CHUNKS)
        return posteriors(config, forward, params, statistics, utterances, {}, **context)

    every = load_manifest(source) if source else load_utterances(config)
    heard = {split: list(hear(list(in_splits(every, (split,))))) for split in SPLITS}
    judged = {split: judge(decode(heard[split], {}, tokenizer, decoder)) for split in SPLITS}
    confidence = fit(judged["dev"])
    settings = {"search": dataclasses.asdict(search), "calibration": dataclasses.asdict(confidence)}
    result: dict = {"step": step} | settings | {"splits": {}}
    for split in SPLITS:
        right = np.concatenate([one.right for one in judged[split]])
        figures: dict = {"words": len(right), "right": float(right.mean())}
        for name, calibration in (("before", UNCALIBRATED), ("after", confidence)):
            figures[name] = calibration_error(judged[split], calibration)
        result["splits"][split] = figures
    if outside:
        other = load_manifest(outside)
        inside, others = {}, {}
        for split in SPLITS:
            inside[split] = segments(heard[split], tokenizer, decoder, framing, confidence, right_alone=True)
            speech = hear(list(in_splits(other, (split,))))
            others[split] = segments(speech, tokenizer, decoder, framing, confidence, right_alone=False)
        threshold = highest(inside["dev"])
        result["rejection"] = {"min_confidence": threshold} | {
            split: {
                "right_words_lost": share_below(inside[split], threshold),
                "other_words_rejected": share_below(others[split], threshold),
                "other_words": int(others[split][:, 1].sum()),
            }
            for split in SPLITS
        }
    return result


def segments(
    heard: Iterable[tuple[Utterance, np.ndarray]],
    tokenizer: Tokenizer,
    decoder: Callable[[], Decoder],
    framing: Framing,
    confidence: Confidence,
    *,
    right_alone: bool,
) -> np.ndarray:
    """[segments, 2]: the confidence of each, and how many of its words are right, or how many it has."""
    rows = []
    for utterance, log_probs in heard:
        transcript = Transcript(tokenizer, framing, decoder=decoder, endpoint=EndpointConfig(), confidence=confidence)
        for start in range(0, len(log_probs), framing.chunk_size):
            chunk = log_probs[start : start + framing.chunk_size]
            transcript.decode(chunk, np.zeros(len(chunk) * framing.subsampling_factor, np.float32))
        transcript.finish()
        words = [word.text for segment in transcript.segments for word in segment.words]
        counted = right_words(utterance.text, words, tokenizer.level) if right_alone else np.ones(len(words), bool)
        for segment in transcript.segments:
            count, counted = counted[: len(segment.words)].sum(), counted[len(segment.words) :]
            rows.append((segment.confidence, count))
    return np.array(rows).reshape(-1, 2)


def highest(inside: np.ndarray) -> float:
    """The threshold that loses at most LOST of the right words, to two digits."""
    return max(t for t in np.arange(0, 1, 0.01).round(2).tolist() if share_below(inside, t) <= LOST)


def share_below(rows: np.ndarray, threshold: float) -> float:
    """Share of the words that are in segments below a threshold."""
    return float(rows[rows[:, 0] < threshold, 1].sum() / max(rows[:, 1].sum(), 1))


def table(result: dict) -> str:
    """The record for a reader."""
    lines = [f"{'':<8}{'words':>6}{'right':>9}   calibration error of words, before and after; of segments"]
    for split, row in result["splits"].items():
        errors = [f"{row['before'][unit]:.1%} {row['after'][unit]:.1%}" for unit in ("words", "segments")]
        lines.append(f"{split:<8}{row['words']:>6}{row['right']:>9.1%}   {'; '.join(errors)}")
    if rejection := result.get("rejection"):
        for split in SPLITS:
            row = rejection[split]
            lines.append(
                f"--min-confidence={rejection['min_confidence']} on {split}: lost are {row['right_words_lost']:.1%} of "
                f"the right words; rejected {row['other_words_rejected']:.1%} of {row['other_words']} in other speech"
            )
    return "\n".join(lines)
