"""Scores a trained recogniser.

  python eval.py --workdir=runs/demo
  python eval.py --workdir=runs/words --streaming --chunk-size=8,16,32 --plot=latency.svg
  python eval.py --workdir=runs/words --manifest=my_recordings.jsonl --split=all --json=results.json

Prints word and character error rates with their parts and a 95 % interval, and writes the errors of each utterance to
errors-SPLIT.jsonl in the work directory. With --streaming, the same utterances are also recognised as streams on one
core, once for each chunk size, beside the whole utterance in one table. With --masked, they are recognised whole and in
batches, but each frame sees what it would see in a stream: the same words much sooner, and no latency.
"""

import datetime
import json
import pathlib
import sys

import jax
from absl import app, flags
from flax import nnx

from conformer import runtime
from conformer.config import EXECUTIONS, parse_flags
from conformer.data import load_split
from conformer.evaluation.latency import plot_latency
from conformer.evaluation.offline import Transcripts, make_forward, transcribe
from conformer.evaluation.scorer import write_errors
from conformer.evaluation.streaming import Timing, transcribe_streaming
from conformer.numerics import POLICIES, apply_policy, scale_residual
from conformer.training.checkpoint import load_model

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
MANIFEST = flags.DEFINE_string("manifest", None, "JSONL manifest, pack or LibriSpeech folder; default: the run's data.")
SPLIT = flags.DEFINE_string("split", "test", "Which split of it; all = every row.")
NUMERICS = flags.DEFINE_enum("numerics", None, list(POLICIES), "Numerics policy; default: that of the run's config.")
EXECUTION = flags.DEFINE_enum("execution", None, EXECUTIONS, "Layout of tensors; default: as trained.")
RESIDUAL_SCALE = flags.DEFINE_float(
    "residual-scale", 1.0, "Make the residual stream so many times as large, a power of two; the function is the same."
)
STREAMING = flags.DEFINE_bool("streaming", False, "Also recognise the utterances as streams.")
MASKED = flags.DEFINE_bool("masked", False, "Also recognise them whole, each frame with a stream's context.")
CHUNK_SIZE = flags.DEFINE_list("chunk-size", ["16"], "Encoder frames of a chunk; several, comma separated.")
NUM_LEFT_CHUNKS = flags.DEFINE_integer("num-left-chunks", 4, "Chunks of left context.", lower_bound=0)
ERRORS = flags.DEFINE_string("errors", None, "File for the errors of each utterance; default: in the work directory.")
PLOT = flags.DEFINE_string("plot", None, "Draw error rate against latency into this file (needs the extra 'plots').")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(_) -> None:
    if STREAMING.value:
        runtime.use_one_core()
    runtime.set_up()
    try:
        evaluate(pathlib.Path(WORKDIR.value))
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"eval.py: {error}")


def evaluate(workdir: pathlib.Path) -> None:
    chunk_sizes = read_chunk_sizes() if STREAMING.value or MASKED.value else []
    config, model, tokenizer, step = load_model(workdir, EXECUTION.value)
    model = apply_policy(scale_residual(model, RESIDUAL_SCALE.value), NUMERICS.value or config.numerics)
    utterances = load_split(config, MANIFEST.value, SPLIT.value)

    # --------------------------------------------------------------- whole utterances
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    forward = make_forward(config, graphdef)
    transcripts = transcribe(config, forward, params, statistics, tokenizer, utterances)
    errors = pathlib.Path(ERRORS.value or workdir / f"errors-{SPLIT.value}.jsonl")
    read = transcripts.utterances
    write_errors(errors, [u.id for u in read], [u.text for u in read], transcripts.texts)
    print(f"{SPLIT.value}: {transcripts.score()}")
    for message in transcripts.broken.values():
        print(f"not scored: {message}")
    print(f"errors of each utterance: {errors}")

    # ------------------------------------------------------------------------ streams
    rows, masked, streams = [row("offline", transcripts)], [], []
    for chunk_size in chunk_sizes:
        left = NUM_LEFT_CHUNKS.value
        milliseconds = round(chunk_size * config.model.subsampling_factor * config.features.frame_shift_ms)
        if MASKED.value:
            arguments = config, forward, params, statistics, tokenizer, read
            whole = transcribe(*arguments, chunk_size=chunk_size, num_left_chunks=left)
            masked.append(row(f"{milliseconds} ms, masked", whole, None, chunk_size))
        if STREAMING.value:
            arguments = config, model, tokenizer, read
            streamed, timing = transcribe_streaming(*arguments, chunk_size=chunk_size, num_left_chunks=left)
            streams.append(row(f"{milliseconds} ms", streamed, timing, chunk_size))
    if chunk_sizes:
        print("\n" + table(rows + masked + streams))
    if PLOT.value:
        plot_latency(rows + streams, PLOT.value)

    if JSON.value:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.date.today().isoformat(),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "step": step,
            "split": SPLIT.value,
            "numerics": NUMERICS.value or config.numerics,
            "residual_scale": RESIDUAL_SCALE.value,
            "not_scored": len(transcripts.broken),
        }
        record |= rows[0] | ({"masked": masked} if masked else {}) | ({"streaming": streams} if streams else {})
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=2) + "\n")


def read_chunk_sizes() -> list[int]:
    """What --chunk-size holds. Raises ValueError for anything but whole numbers."""
    if not CHUNK_SIZE.value or not all(size.strip().isdigit() and int(size) > 0 for size in CHUNK_SIZE.value):
        raise ValueError(
            f"--chunk-size={','.join(CHUNK_SIZE.value)} must hold whole numbers of at least 1, as in 8,16,32"
        )
    return [int(size) for size in CHUNK_SIZE.value]


def row(mode: str, transcripts: Transcripts, timing: Timing | None = None, chunk_size: int = 0) -> dict:
    """The figures of one way of recognising."""
    figures = {"mode": mode, "chunk_size": chunk_size} | transcripts.score().as_dict()
    if timing is not None:
        figures |= {
            "num_left_chunks": NUM_LEFT_CHUNKS.value,
            "real_time_factor": timing.real_time_factor,
            "chunk_ms": [1000 * seconds for seconds in timing.per_chunk],
            "latency_seconds": timing.latency,
        }
    return figures


def table(rows: list[dict]) -> str:
    """One line a way of recognising."""
    lines = [f"{'':<16}{'WER':>8}  {'95 % interval':<18}{'RTF':>7}  {'ms a chunk: 50, 95, 99 %':<26}{'latency':>8}"]
    for figures in rows:
        line = f"{figures['mode']:<16}{figures['wer']:>8.2%}  {figures['wer_low']:.2%} to {figures['wer_high']:<9.2%}"
        if "chunk_ms" in figures:
            percentiles = ", ".join(f"{value:.1f}" for value in figures["chunk_ms"])
            line += f"{figures['real_time_factor']:>7.3f}  {percentiles:<26}{figures['latency_seconds']:>6.2f} s"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
