"""Measures the word errors saved by each step from greedy decoding to an open lexicon, and reads the learning curve."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np
from flax import nnx

from conformer.data import Utterance, load_split
from conformer.decode.search import Search, make_decoding, read_lm
from conformer.evaluation.offline import decode, make_forward, posteriors
from conformer.evaluation.tuning import read_grid, tune
from conformer.training.checkpoint import load_model
from conformer.training.metrics import read_metrics

SMALL, LARGE = 8, 64  # prefixes of a beam: to tune with, to score with
WEIGHTS = ("lm-weight=0.3,0.45,0.6,0.75,0.9", "word-bonus=-1,-0.5,0,0.5,1,1.5")
OOV_RATES = ("oov-rate=0,0.005,0.01,0.02,0.05,0.1",)


def run(workdir: str | pathlib.Path, arpa: str) -> dict:
    """Tunes a beam search with a language model of words on dev, then scores every step towards it on dev and test."""
    workdir = pathlib.Path(workdir)
    config, model, tokenizer, step = load_model(workdir)
    untuned = Search(beam_size=SMALL, lm=arpa)
    lm = read_lm(untuned, tokenizer)
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    forward = make_forward(config, graphdef)
    heard = {
        split: list(posteriors(config, forward, params, statistics, load_split(config, None, split), {}))
        for split in ("dev", "test")
    }

    def best(*settings: str, of: Search) -> Search:
        return tune(heard["dev"], tokenizer, lm, read_grid(settings, of), lambda *_: None)[0][0]

    tuned = best(*WEIGHTS, of=untuned)
    tuned = dataclasses.replace(best(*OOV_RATES, of=tuned), beam_size=LARGE)
    closed = dataclasses.replace(tuned, oov_rate=0.0)
    ways = {"greedy": Search(), "beam": Search(beam_size=LARGE), "closed lexicon": closed, "open lexicon": tuned}

    def rows(pairs: Iterable[tuple[Utterance, np.ndarray]]) -> list[dict]:
        return [
            {"name": name, "search": dataclasses.asdict(search)}
            | decode(pairs, {}, *make_decoding(search, tokenizer, lm)).score().as_dict()
            for name, search in ways.items()
        ]

    return {
        "step": step,
        "seed": config.seed,
        "curve": learning_curve(workdir),
        "ablation": rows(heard["dev"]),
        "test": rows(heard["test"]),
    }


def learning_curve(workdir: pathlib.Path) -> list[dict]:
    """The error rates on dev that train.py measured, greedy; empty for a model without its log."""
    return [
        {"step": line["step"], "wer": line["eval_wer"], "cer": line["eval_cer"]}
        for line in read_metrics(workdir)
        if "eval_wer" in line
    ]


def table(result: dict) -> str:
    """A line a way of decoding."""
    lines = [f"{'':<18}{'dev':>8}{'test':>9}  95 % interval"]
    for dev, test in zip(result["ablation"], result["test"], strict=True):
        interval = f"{test['wer_low']:.2%} to {test['wer_high']:.2%}"
        lines.append(f"{dev['name']:<18}{dev['wer']:>8.2%}{test['wer']:>9.2%}  {interval}")
    return "\n".join(lines)
