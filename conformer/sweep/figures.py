"""The figures of a trial: a row for the whole utterances, and one for each chunk size of a stream."""

import pathlib
import statistics

from conformer.config import Config
from conformer.cost import DEVICES, Precision, Workload, num_parameters, predict, total
from conformer.policy import Policy, get_policy
from conformer.sweep.trials import Trial
from conformer.training.metrics import read_metrics

DEVICE = DEVICES["watch"]
UTTERANCE_SECONDS = 10.0  # what whole utterances are taken to last when their cost is counted
SPEED = "audio_seconds_per_second"


def figures(trial: Trial, model: pathlib.Path, scores: dict) -> list[dict]:
    """One row a way of recognising: with the search where there is one, else greedy.

    What begins with `measured_` is a time, and differs from run to run.

    Args:
        model: folder of the trained model.
        scores: what eval.py wrote.
    """
    config = Config.from_json(model / "config.json").replace({"model.execution": trial.execution})
    rows = []
    ways = [scores, *(way for kind in ("searched", "masked", "streaming") for way in scores.get(kind, []))]
    for way in [way for way in ways if "search" in way] or ways:
        chunk_size = way["chunk_size"]
        if chunk_size:
            workload = Workload.chunk(config, chunk_size, trial.num_left_chunks)
        else:
            workload = Workload.utterance(config, UTTERANCE_SECONDS)
        rows.append(
            {"trial": trial.name, "mode": way["mode"], "chunk_size": chunk_size}
            | {name: way[name] for name in ("wer", "wer_low", "wer_high", "cer", "errors", "words", "utterances")}
            | {"step": scores["step"], "parameters": num_parameters(config)}
            | costs(config, workload, get_policy(trial.numerics))
            | {
                "measured_real_time_factor": way.get("real_time_factor"),
                "measured_latency_seconds": way.get("latency_seconds"),
                "measured_training_speed": training_speed(model),
            }
        )
    return rows


def costs(config: Config, workload: Workload, policy: Policy) -> dict[str, float | None]:
    """Returns what the cost model counts for a second of audio, and predicts for the watch-class device."""
    known = policy.compute in DEVICE.matrix_rate  # float8 is not
    activations = 2 if policy.emulated else 4
    weights = {"float32": 4, "bfloat16": 2, "float16": 2}.get(policy.parameters, 1)
    found = predict(config, workload, DEVICE, Precision(weights, activations, policy.compute if known else "float16"))
    whole = total(found.values())
    return {
        "front_end_share": found["front end"].macs / whole.macs,
        "macs_per_second": whole.macs / workload.seconds,
        "bytes_per_second": whole.bytes_moved / workload.seconds,
        "predicted_joules_per_second": whole.joules / workload.seconds if known else None,
    }


def training_speed(model: pathlib.Path) -> float | None:
    """Seconds of audio a second, the median of what training logged; None for a model without its log."""
    speeds = [line[SPEED] for line in read_metrics(model) if SPEED in line]
    return statistics.median(speeds) if speeds else None
