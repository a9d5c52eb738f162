"""Word error rates of one trained model under every numerics policy, and what each stabiliser is good for."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from conformer.data import eval_batches, in_splits, load_utterances
from conformer.evaluation.offline import make_forward, transcribe
from conformer.features import log_mel
from conformer.numerics import POLICIES, apply_policy, calibrate, get_policy, scale_residual
from conformer.training.checkpoint import load_model

EDGE = POLICIES["edge_fp16"]
STATIC = dataclasses.replace(EDGE, name="edge_fp16, static norm")
REPAIRS = (
    EDGE,
    STATIC,
    dataclasses.replace(EDGE, name="edge_fp16, naive norm", stabilised_norm=False),
    dataclasses.replace(EDGE, name="edge_fp16, naive softmax", stabilised_softmax=False),
    POLICIES["edge_fp16_naive"],
)
ONE_TREE = dataclasses.replace(EDGE, name="edge_fp16, one tree", block=None)
FAST = [policy for policy in POLICIES.values() if not policy.emulated]
CASES = [(policy, 1.0) for policy in (*FAST, ONE_TREE, *REPAIRS)] + [
    (policy, factor) for factor in (64.0, 1024.0) for policy in (POLICIES["float32"], *REPAIRS)
]
CALIBRATION_UTTERANCES = 64  # of the train split, for static scales


def run(workdir: str | pathlib.Path, names: Sequence[str] = (), split: str = "test") -> dict:
    """Scores the model of a work directory on a split under each policy, some with a scaled residual stream.

    Args:
        names: policies to be scored, with the residual stream as it is; none = every case.
    """
    cases = [(get_policy(name), 1.0) for name in names] or CASES
    config, model, tokenizer, step = load_model(pathlib.Path(workdir))
    # One small shape for all utterances: an emulated program takes longer to compile than to run.
    longest = config.data.bucket_seconds[-1]
    config = config.replace({"data.bucket_seconds": (longest,), "data.batch_seconds": 2 * longest})
    every = load_utterances(config)
    utterances = list(in_splits(every, (split,)))
    seen = list(itertools.islice(in_splits(every, config.data.train_splits), CALIBRATION_UTTERANCES))
    calibration = [
        log_mel(config.features, *map(jnp.asarray, batch[:2])) for _, batch in eval_batches(config, seen, {})
    ]
    rows = []
    for policy, factor in cases:
        scaled = scale_residual(model, factor)
        changed = calibrate(scaled, policy, calibration) if policy is STATIC else apply_policy(scaled, policy)
        graphdef, params, statistics = nnx.split(changed, nnx.Param, ...)
        forward = make_forward(config, graphdef)
        score = transcribe(config, forward, params, statistics, tokenizer, utterances).score()
        rows.append({"policy": policy.name, "residual_scale": factor} | score.as_dict())
        print(line(rows[-1]), flush=True)
    return {"step": step, "split": split, "rows": rows}


def line(row: dict) -> str:
    """One row of the table."""
    return (
        f"{row['policy']:<32}residual x {row['residual_scale']:<6.0f} WER {row['wer']:7.2%}  ({row['errors']} errors)"
    )
