"""Scores a trained recogniser.

  python eval.py --workdir=runs/demo
  python eval.py --workdir=runs/words --streaming --chunk-size=8,16,32 --plot=latency.svg
  python eval.py --workdir=runs/words --manifest=my_recordings.jsonl --split=all --json=results.json
  python eval.py --workdir=runs/english_small --split=dev --beam-size=32 --lm=words.arpa --tune=lm-weight=0.3,0.5,0.8

Prints word and character error rates with their parts and a 95 % interval. --errors=FILE gets the errors of each
utterance, --json=FILE the figures.

--streaming    also recognises the utterances as streams on one core, once for each chunk size, and shows the latency
--masked       does so in batches, by masks: the same error rates much sooner, and no latency
--beam-size    also decodes by a beam search (with --lm, by a language model of lm.py), beside greedy decoding
--calibrate    fits the confidence of words to how often they are right, and keeps it beside the model

The real-time factor (RTF) is computing time for a second of audio: of streams one after the other, of whole utterances
in batches.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import tqdm
from absl import flags
from flax import nnx

from conformer import record, runtime, system
from conformer.command import run_command
from conformer.config import EXECUTIONS
from conformer.data import load_split
from conformer.decode.confidence import CONFIDENCE_FILE, Confidence
from conformer.decode.search import (
    SEARCH_FILE,
    Search,
    check_nbest,
    define_search_flags,
    make_decoding,
    read_lm,
)
from conformer.evaluation.confidence import calibration_error, fit, judge
from conformer.evaluation.latency import latency_plot
from conformer.evaluation.offline import Clock, Heard, Transcripts, decode, make_forward, posteriors
from conformer.evaluation.scorer import write_errors
from conformer.evaluation.streaming import Timing, transcribe_streaming
from conformer.evaluation.tuning import read_grid, tune
from conformer.model.subsampling import lengths_of
from conformer.numerics import POLICIES, apply_policy, scale_residual
from conformer.streaming import Framing
from conformer.streaming.engine import Engine
from conformer.tokenizer import Tokenizer
from conformer.training.checkpoint import load_model

CALIBRATION_CHUNK = 16  # encoder frames: what transcribe.py hears at a time
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
MANIFEST = flags.DEFINE_string("manifest", None, "JSONL manifest, pack or LibriSpeech folder; default: the run's data.")
SPLIT = flags.DEFINE_string("split", "test", "Which split of it; dev,test = both; all = every row.")
NUMERICS = flags.DEFINE_enum("numerics", None, list(POLICIES), "Numerics policy; default: that of the run's config.")
EXECUTION = flags.DEFINE_enum("execution", None, EXECUTIONS, "Layout of tensors; default: as trained.")
RESIDUAL_SCALE = flags.DEFINE_float(
    "residual-scale", 1.0, "Make the residual stream so many times as large, a power of two; the function is the same."
)
STREAMING = flags.DEFINE_bool("streaming", False, "Also recognise the utterances as streams.")
MASKED = flags.DEFINE_bool("masked", False, "Also recognise them whole, each frame with a stream's context.")
CHUNK_SIZE = flags.DEFINE_list("chunk-size", ["16"], "Encoder frames of a chunk; several, comma separated.")
NUM_LEFT_CHUNKS = flags.DEFINE_list("num-left-chunks", ["4"], "Chunks of left context, of all sizes or of each.")
LOOK_AHEAD = flags.DEFINE_list("look-ahead", ["0"], "Encoder frames after a chunk that it sees, of all sizes or each.")
SEARCH = define_search_flags()
TUNE = flags.DEFINE_multi_string(
    "tune", [], "Search with each of these and keep the best, as in --tune=lm-weight=0.3,0.5 --tune=word-bonus=0,2."
)
KEEP_SEARCH = flags.DEFINE_bool(
    "keep-search",
    False,
    "Keep the search in the work directory: it is then the default there, the best of --tune, say.",
)
CALIBRATE = flags.DEFINE_bool(
    "calibrate", False, "Fit the confidence of words to this split, not test, and keep it in the work directory."
)
NBEST = flags.DEFINE_integer("nbest", 0, "Alternatives of an utterance in the errors file, of a beam.", lower_bound=0)
ERRORS = flags.DEFINE_string("errors", None, "Also write the errors of each utterance to this file (JSONL).")
PLOT = flags.DEFINE_string("plot", None, "Draw error rate against latency into this file (SVG).")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(_) -> None:
    if STREAMING.value:
        system.use_one_core()
    runtime.set_up()
    try:
        evaluate(pathlib.Path(WORKDIR.value))
    except (ValueError, OSError) as error:  # ValueError: what every error of bad input is; OSError: a full disk, say
        sys.exit(f"eval.py: {error}")


def evaluate(workdir: pathlib.Path) -> None:
    for output in (JSON.value, PLOT.value, ERRORS.value):
        system.check_writable(output)
    if PLOT.value and not STREAMING.value:
        raise ValueError("--plot shows streams: add --streaming, and several sizes to --chunk-size")
    given = read_contexts()
    contexts = given if STREAMING.value or MASKED.value else []
    if MASKED.value and any(context["look_ahead"] for context in contexts):
        raise ValueError("--masked computes each frame once, and no look-ahead: use --streaming for --look-ahead")
    search = SEARCH(workdir)
    grid = read_grid(TUNE.value, search) if TUNE.value else []
    unseen = not {"test", "all"} & set(SPLIT.value.split(","))
    if grid and not (unseen and search.beam_size):
        raise ValueError(
            "--tune chooses the settings of a beam search, by another split than test: add --split=dev --beam-size=8"
        )
    check_nbest(NBEST.value, search)
    if CALIBRATE.value:
        if not unseen:
            raise ValueError("--calibrate fits to another split than test: add --split=dev")
        system.check_writable(workdir / CONFIDENCE_FILE)
    if KEEP_SEARCH.value:
        system.check_writable(workdir / SEARCH_FILE)
    confidence = Confidence.load(workdir)
    circumstances = record.describe_run(workdir)
    config, model, tokenizer, step = load_model(workdir, EXECUTION.value)
    if STREAMING.value and config.not_streaming is not None:
        raise ValueError(f"--streaming: {config.not_streaming}")
    lm = read_lm(search, tokenizer)
    for candidate in (search, *grid):
        make_decoding(candidate, tokenizer, lm)[1]()  # one that cannot be is known before anything is recognised
    model = apply_policy(scale_residual(model, RESIDUAL_SCALE.value), NUMERICS.value or config.numerics)
    utterances = load_split(config, MANIFEST.value, SPLIT.value)

    # --------------------------------------------------------------- whole utterances
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    forward = make_forward(config, graphdef)
    broken: dict[str, str] = {}
    clock = Clock()
    heard = posteriors(config, forward, params, statistics, utterances, broken, clock)
    heard = progress(heard, len(utterances))
    if search.beam_size:
        heard = list(heard)  # decoded more than once
    searches = [Search()]
    transcripts = decode(heard, broken, tokenizer)
    rows = [row("offline", transcripts, searches[0], clock)]
    print(f"{SPLIT.value}: {transcripts.score()}")
    trials = tune(heard, tokenizer, lm, grid, lambda trial, score: print(f"WER {score.wer:7.2%}  {trial}", flush=True))
    if trials:
        search = trials[0][0]
    if KEEP_SEARCH.value:
        search.save(workdir)
        print(f"{workdir / SEARCH_FILE}: {search}")
    if search.beam_size:
        searches.append(search)
        transcripts = decode(heard, broken, *make_decoding(search, tokenizer, lm), NBEST.value)
        rows.append(row("offline", transcripts, search, clock))
        print(f"{SPLIT.value}, {search}: {transcripts.score()}")
    read = transcripts.utterances
    for message in broken.values():
        print(f"not scored: {message}")
    frame_seconds = Framing(config.features, lengths_of(config.model), 1).frame_seconds
    if ERRORS.value:
        details = [detail(heard, confidence, tokenizer, frame_seconds) for heard in transcripts.heard]
        references = [u.text for u in read]
        write_errors(ERRORS.value, [u.id for u in read], references, transcripts.texts, tokenizer.level, details)
    if CALIBRATE.value:
        context = contexts[0] if contexts else given[0] | {"chunk_size": CALIBRATION_CHUNK}
        as_streamed = posteriors(config, forward, params, statistics, read, {}, **masked_context(context))
        judged = judge(decode(as_streamed, {}, *make_decoding(search, tokenizer, lm)))
        fitted = fit(judged)
        before, after = (calibration_error(judged, calibration)["words"] for calibration in (confidence, fitted))
        fitted.save(workdir)
        print(f"calibration error of words: {before:.1%}, now {after:.1%}: {workdir / CONFIDENCE_FILE}")

    # ------------------------------------------------------------------------ streams
    masked, streams = [], []
    for context in contexts:
        mode = f"{1000 * context['chunk_size'] * frame_seconds:.0f}"
        if context["look_ahead"]:
            mode += f" + {1000 * context['look_ahead'] * frame_seconds:.0f}"
        if MASKED.value:
            clock = Clock()
            heard = posteriors(config, forward, params, statistics, read, {}, clock, **masked_context(context))
            heard = list(progress(heard, len(read)))
            for one in searches:
                whole = decode(heard, {}, *make_decoding(one, tokenizer, lm))
                masked.append(row(f"{mode} ms, masked", whole, one, clock, context))
        if STREAMING.value:
            engine = Engine(config, model, **context)
            for one in searches:
                writer, decoder = make_decoding(one, tokenizer, lm)
                streamed, timing = transcribe_streaming(engine, writer, progress(read, len(read)), decoder=decoder)
                streams.append(row(f"{mode} ms", streamed, one, timing, context))
    if len(rows) > 1 or contexts:
        print("\n" + table(rows + masked + streams))
    if PLOT.value:
        shown = [figures for figures in streams if ("search" in figures) == bool(search.beam_size)]
        system.write_text(pathlib.Path(PLOT.value), latency_plot(shown, rows[-1]["wer"]))

    if JSON.value:
        settings = {
            "step": step,
            "split": SPLIT.value,
            "numerics": NUMERICS.value or config.numerics,
            "residual_scale": RESIDUAL_SCALE.value,
            "not_scored": len(broken),
            "calibration_error": calibration_error(judged, confidence) if (judged := judge(transcripts)) else None,
        }
        lists = {
            "searched": rows[1:],
            "masked": masked,
            "streaming": streams,
            "tried": [dataclasses.asdict(t) | s.as_dict() for t, s in trials],
        }
        found = {name: values for name, values in lists.items() if values}
        record.write(JSON.value, circumstances | settings | rows[0] | found)


def progress[T](things: Iterable[T], total: int) -> Iterable[T]:
    """The same, while a bar on standard error, if that is a terminal, says how many have passed."""
    return tqdm.tqdm(things, total=total, unit="utterance", disable=None, leave=False, dynamic_ncols=True)


def detail(heard: Heard, confidence: Confidence, tokenizer: Tokenizer, frame_seconds: float) -> dict[str, Any]:
    """Returns what the errors file holds of an utterance beside its errors."""
    return {
        "confidences": confidence.of(heard.evidence).round(4).tolist(),
        "tokens": [[tokenizer.symbols[token.id], round(token.frame * frame_seconds, 3)] for token in heard.tokens],
        "alternatives": [alternative._asdict() for alternative in heard.alternatives],
    }


def read_contexts() -> list[dict[str, int]]:
    """Returns chunk_size, num_left_chunks and look_ahead of each --chunk-size. Raises ValueError for bad numbers."""
    values = {}
    for name, flag, least in (
        ("chunk_size", CHUNK_SIZE, 1),
        ("num_left_chunks", NUM_LEFT_CHUNKS, 0),
        ("look_ahead", LOOK_AHEAD, 0),
    ):
        given = f"--{flag.name}={','.join(flag.value)}"
        if not flag.value or not all(value.strip().isdigit() and int(value) >= least for value in flag.value):
            raise ValueError(f"{given} must hold whole numbers of at least {least}, as in 8,16,32")
        count = len(CHUNK_SIZE.value)
        if len(flag.value) not in (1, count):
            raise ValueError(f"{given} must hold one number for all --chunk-size, or {count}: one for each")
        values[name] = [int(value) for value in flag.value] * (1 if len(flag.value) == count else count)
    return [dict(zip(values, context, strict=True)) for context in zip(*values.values(), strict=True)]


def masked_context(context: dict[str, int]) -> dict[str, int]:
    """Returns what a mask can hold of a stream's context: all of it but a look-ahead."""
    return {name: context[name] for name in ("chunk_size", "num_left_chunks")}


def row(
    mode: str,
    transcripts: Transcripts,
    search: Search,
    timing: Timing | Clock,
    context: Mapping[str, int] | None = None,
) -> dict:
    """The figures of one way of recognising; a `Clock` is that of whole utterances, which have no chunks."""
    figures = {"mode": mode, **(context or {"chunk_size": 0})} | transcripts.score().as_dict()
    if search.beam_size:
        figures["mode"] += f", beam {search.beam_size}"
        figures["search"] = dataclasses.asdict(search)
    if isinstance(timing, Clock):
        figures["real_time_factor"] = timing.real_time_factor(transcripts)
    else:
        figures |= {
            "real_time_factor": timing.real_time_factor,
            "chunk_ms": [1000 * seconds for seconds in timing.per_chunk],
            "latency_seconds": timing.latency,
        }
    return figures


def table(rows: list[dict]) -> str:
    """One line a way of recognising."""
    lines = [f"{'':<24}{'WER':>8}  {'95 % interval':<18}{'RTF':>7}  {'ms a chunk: 50, 95, 99 %':<26}{'latency':>8}"]
    for figures in rows:
        line = f"{figures['mode']:<24}{figures['wer']:>8.2%}  {figures['wer_low']:.2%} to {figures['wer_high']:<9.2%}"
        line += f"{figures['real_time_factor']:>7.4f}"
        if "chunk_ms" in figures:
            percentiles = ", ".join(f"{value:.1f}" for value in figures["chunk_ms"])
            line += f"  {percentiles:<26}{figures['latency_seconds']:>6.2f} s"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
