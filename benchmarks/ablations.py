"""What chunks, left context, layouts and numerics policies cost a trained recogniser: differences, paired.

Dev and test are pooled: nothing is chosen here, and more words make the intervals narrower. Each case hears the
recordings once. Greedy decoding and the search that is kept beside the model read the same log-probabilities. Chunks
are masks over whole recordings (`eval.py --masked`): the words of streams, much sooner. Those that look ahead are
streams.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flax import nnx

from conformer import system
from conformer.data import Utterance, load_split
from conformer.decode.greedy import Decoder
from conformer.decode.search import make_decoding, read_lm, search_beside
from conformer.evaluation.offline import decode, make_forward, posteriors
from conformer.evaluation.scorer import difference, score_each
from conformer.numerics import POLICIES, apply_policy
from conformer.streaming import log_probs_of, windows_of
from conformer.streaming.engine import Engine
from conformer.sweep.table import markdown
from conformer.tokenizer import Tokenizer, load_tokenizer
from conformer.training.checkpoint import load_model

SPLITS = "dev,test"
WHOLE, STREAM = "whole recordings", "chunks of 640 ms"
WAYS = ("greedy", "searched")


@dataclasses.dataclass(frozen=True)
class Case:
    """A way of computing, and the case that it is compared with."""

    milliseconds: int = 0  # of a chunk; 0 = whole recordings
    num_left_chunks: int = 16
    look_ahead: int = 0  # milliseconds after a chunk that it sees
    execution: str | None = None  # None = as trained
    numerics: str = "float32"
    against: str = WHOLE
    searched: bool = False  # also with the search that is kept beside the model, which takes a minute or more


CASES = {
    WHOLE: Case(searched=True),
    "chunks of 1280 ms": Case(1280, searched=True),
    STREAM: Case(640, searched=True),
    "chunks of 320 ms": Case(320, searched=True),
    "chunks of 320 ms, look-ahead of 320 ms": Case(320, 32, look_ahead=320, searched=True),
    "chunks of 160 ms, look-ahead of 160 ms": Case(160, 64, look_ahead=160, searched=True),
    "640 ms, 8 chunks of left context": Case(640, 8, against=STREAM),
    "640 ms, 4 chunks of left context": Case(640, 4, against=STREAM, searched=True),  # as exported
    "640 ms, 2 chunks of left context": Case(640, 2, against=STREAM),
    "channels_first": Case(execution="channels_first"),
}
CASES |= {name: Case(numerics=name, searched=name in ("int8", "edge_fp16")) for name in POLICIES if name != "float32"}


def run(workdir: str | pathlib.Path, splits: str = SPLITS, cases: Mapping[str, Case] = CASES) -> dict:
    """Scores the model of a work directory in each case, the first of which is compared with none.

    Returns:
        step, splits, the settings of the search, and `rows`: of each case its name, what it is compared with, and under
        `greedy`, and `searched` where it was, its score and its `difference` from what it is compared with.
    """
    workdir = pathlib.Path(workdir)
    config, _, tokenizer, step = load_model(workdir)
    search = search_beside(workdir, {})
    utterances = load_split(config, None, splits)
    texts: dict[str, dict[str, Sequence[str]]] = {}
    waiting: dict[str, concurrent.futures.Future] = {}
    context = multiprocessing.get_context("spawn")  # a fork would lose JAX's threads
    with concurrent.futures.ProcessPoolExecutor(len(system.cores()), context, system.die_with, (os.getpid(),)) as pool:
        for name, case in cases.items():
            heard = hear(workdir, case, utterances)
            texts[name] = {"greedy": decode(heard, {}, tokenizer).texts}
            if case.searched and search.beam_size:
                waiting[name] = pool.submit(searched, workdir, heard)
            print(f"{name}: heard", flush=True)
        references = [utterance.text for utterance, _ in heard]
        for name, future in waiting.items():
            texts[name]["searched"] = future.result()
            print(f"{name}: searched", flush=True)
    rows, errors = [], {}
    for name, case in cases.items():
        row = {"case": name, "against": case.against if rows else None}
        for way, found in texts[name].items():
            scored, errors[name, way] = score_each(references, found, tokenizer.level)
            row[way] = scored.as_dict()
            if rows:
                row[way] |= difference(errors[name, way], errors[case.against, way], references)
        rows.append(row)
    return {"step": step, "splits": splits, "search": dataclasses.asdict(search), "rows": rows}


def hear(workdir: pathlib.Path, case: Case, utterances: Sequence[Utterance]) -> list[tuple[Utterance, np.ndarray]]:
    """The log-probabilities of utterances, computed as a case says, in an order that all cases share."""
    config, model, _, _ = load_model(workdir, case.execution)
    config = config.replace({"data.bucket_seconds": ()})  # few shapes: an emulated program compiles for long
    model = apply_policy(model, case.numerics)
    frame = config.model.subsampling_factor * config.features.frame_shift_ms
    context = dict(chunk_size=round(case.milliseconds / frame), num_left_chunks=case.num_left_chunks)
    if case.look_ahead:
        engine = Engine(config, model, look_ahead=round(case.look_ahead / frame), **context)
        streams = ((u, windows_of(engine.framing, u.samples(config.features.sample_rate))) for u in utterances)
        heard = [(utterance, log_probs_of(engine, windows)) for utterance, windows in streams]
    else:
        graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
        forward, options = make_forward(config, graphdef), context if case.milliseconds else {}
        heard = posteriors(config, forward, params, statistics, utterances, {}, **options)
    return sorted(heard, key=lambda pair: pair[0].id)


def searched(workdir: pathlib.Path, heard: Sequence[tuple[Utterance, np.ndarray]]) -> list[str]:
    """The texts that the search beside a model finds in log-probabilities."""
    return decode(heard, {}, *_decoding(workdir)).texts


@functools.cache  # a language model takes seconds to read
def _decoding(workdir: pathlib.Path) -> tuple[Tokenizer, Callable[[], Decoder]]:
    search = search_beside(workdir, {})
    tokenizer = load_tokenizer(workdir)
    return make_decoding(search, tokenizer, read_lm(search, tokenizer))


def table(result: dict) -> str:
    """The record for a reader: a line a case, its error rates and its differences in points."""
    headings, lines = ["", "against"], [[row["case"], row["against"] or ""] for row in result["rows"]]
    for way, label in zip(WAYS, ("greedy", "with the language model"), strict=True):
        if not any(way in row for row in result["rows"]):
            continue
        headings += [f"WER, {label}", "difference, 95 % interval"]
        for row, line in zip(result["rows"], lines, strict=True):
            line += [f"{row[way]['wer']:.2%}", shown_difference(row[way])] if way in row else ["", ""]
    return markdown(headings, lines)


def shown_difference(figures: Mapping) -> str:
    """A difference of word error rates and its interval, in points; nothing where there is none."""
    if "wer_difference" not in figures:
        return ""
    return "{:+.2f}, {:+.2f} to {:+.2f}".format(*(100 * figures[key] for key in ("wer_difference", "low", "high")))
