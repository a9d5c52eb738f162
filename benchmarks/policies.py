"""Word error rates of one trained model under every numerics policy, and what each stabiliser is good for."""

import dataclasses
import pathlib

from flax import nnx

from benchmarks import record
from conformer import runtime
from conformer.data import load_utterances
from conformer.evaluation.offline import make_forward, transcribe
from conformer.numerics import POLICIES, apply_policy, scale_residual
from conformer.training.checkpoint import load_model

EDGE = POLICIES["edge_fp16"]
ABLATIONS = (
    EDGE,
    dataclasses.replace(EDGE, name="edge_fp16, one tree", block=None),
    dataclasses.replace(EDGE, name="edge_fp16, subnormals flushed", flush_to_zero=True),
    dataclasses.replace(EDGE, name="edge_fp16, naive norm", stabilised_norm=False),
    dataclasses.replace(EDGE, name="edge_fp16, naive softmax", stabilised_softmax=False),
    POLICIES["edge_fp16_naive"],
)
FAST = [policy for policy in POLICIES.values() if not policy.emulated]
CASES = [(policy, 1.0) for policy in (*FAST, *ABLATIONS)] + [
    (policy, factor) for factor in (64.0, 1024.0) for policy in (POLICIES["float32"], EDGE, *ABLATIONS[3:])
]


def run(workdir: str | pathlib.Path, split: str = "test") -> dict:
    """Scores the model of a work directory on a split under each policy, some with a scaled residual stream."""
    circumstances = record.describe_run()
    runtime.set_up()
    config, model, tokenizer, step = load_model(pathlib.Path(workdir))
    utterances = [utterance for utterance in load_utterances(config) if utterance.split == split]
    rows = []
    for policy, factor in CASES:
        changed = apply_policy(scale_residual(model, factor), policy)
        graphdef, params, statistics = nnx.split(changed, nnx.Param, ...)
        forward = make_forward(config, graphdef)
        score = transcribe(config, forward, params, statistics, tokenizer, utterances).score()
        rows.append({"policy": policy.name, "residual_scale": factor} | score.as_dict())
        print(line(rows[-1]), flush=True)
    return circumstances | {"step": step, "split": split, "rows": rows}


def line(row: dict) -> str:
    """One row of the table."""
    return (
        f"{row['policy']:<32}residual x {row['residual_scale']:<6.0f} WER {row['wer']:7.2%}  ({row['errors']} errors)"
    )
