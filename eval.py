"""Scores a trained recogniser.

  python eval.py --workdir=runs/demo
  python eval.py --workdir=runs/words --split=test --json=results.json
  python eval.py --workdir=runs/words --manifest=my_recordings.jsonl

Prints word and character error rates with their parts and a 95 % interval, and writes the errors of each utterance to
errors-SPLIT.jsonl in the work directory.
"""

import datetime
import json
import pathlib
import sys
import time

import jax
from absl import app, flags
from flax import nnx

from conformer import runtime
from conformer.config import ConfigError, parse_flags
from conformer.data import DataError, load_manifest, load_utterances
from conformer.evaluation.offline import make_forward, transcribe
from conformer.evaluation.scorer import ScoreError, write_errors
from conformer.tokenizer import TokenizerError
from conformer.training.checkpoint import CheckpointError, load_model

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
MANIFEST = flags.DEFINE_string(
    "manifest", None, "JSONL manifest, pack or LibriSpeech folder; default: the run's own data."
)
SPLIT = flags.DEFINE_string("split", "test", "Which split of it; 'all' = every row.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(_) -> None:
    runtime.set_up()
    workdir = pathlib.Path(WORKDIR.value)
    try:
        config, model, tokenizer, step = load_model(workdir)
        utterances = load_utterances(config) if MANIFEST.value is None else load_manifest(MANIFEST.value)
        splits = sorted({u.split for u in utterances})
        utterances = [u for u in utterances if SPLIT.value in ("all", u.split)]
        if not utterances:
            raise DataError(f"no utterance in split {SPLIT.value!r}: --split may be all, {', '.join(splits)}")

        graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
        start = time.perf_counter()
        transcripts = transcribe(config, make_forward(config, graphdef), params, statistics, tokenizer, utterances)
        seconds = time.perf_counter() - start
        score = transcripts.score()
    except (ConfigError, DataError, TokenizerError, CheckpointError, ScoreError) as error:
        sys.exit(f"eval.py: {error}")

    errors = workdir / f"errors-{SPLIT.value}.jsonl"
    references = [u.text for u in transcripts.utterances]
    write_errors(errors, [u.id for u in transcripts.utterances], references, transcripts.texts)
    print(f"{SPLIT.value}: {score}")
    for message in transcripts.broken.values():
        print(f"not scored: {message}")
    print(f"errors of each utterance: {errors}")
    if JSON.value:
        record = {
            "command": " ".join(sys.argv),
            "date": datetime.date.today().isoformat(),
            "device": jax.devices()[0].device_kind,
            "step": step,
            "split": SPLIT.value,
            "seconds": seconds,
            "audio_seconds": sum(u.duration for u in transcripts.utterances),
            "not_scored": len(transcripts.broken),
        }
        pathlib.Path(JSON.value).write_text(json.dumps(record | score.as_dict(), indent=2) + "\n")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
