"""Front ends before the same encoder, trained on real speech with the same seed and steps (configs/front_ends.py)."""

import json
import pathlib
import statistics
import subprocess
import sys

from benchmarks import record
from benchmarks.peers import ROOT
from configs.front_ends import BASES, FRONT_ENDS
from conformer.config import Config
from conformer.cost import Workload, num_parameters, operations

CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4


def run(folder: str | pathlib.Path) -> dict:
    """`bench.py front_ends`: trains what `folder` does not hold yet (hours), then scores all of it.

    Runs that were stopped go on where they were.
    """
    folder = pathlib.Path(folder)
    result = record.describe_run() | {"benchmark": "front_ends", "rows": []}
    for base in BASES:
        for front_end in FRONT_ENDS:
            workdir = folder / f"{base}_{front_end}"
            _script("train.py", f"--config=configs/front_ends.py:{base},{front_end}", f"--workdir={workdir}")
            scores = folder / f"{workdir.name}.json"
            _script(
                "eval.py",
                f"--workdir={workdir}",
                "--streaming",
                f"--chunk-size={CHUNK_SIZE}",
                f"--num-left-chunks={NUM_LEFT_CHUNKS}",
                f"--json={scores}",
            )
            result["rows"].append({"base": base, "front_end": front_end} | figures(workdir, scores))
            print(table(result).splitlines()[-1], flush=True)
    return result


def figures(workdir: pathlib.Path, scores: pathlib.Path) -> dict:
    """Error rates, real-time factor as a stream, speed of training, and what a second of audio costs."""
    config = Config.from_json(workdir / "config.json")
    score = json.loads(scores.read_text())
    workload = Workload.chunk(config, CHUNK_SIZE, NUM_LEFT_CHUNKS)
    found = operations(config, workload)
    macs, front = (sum(o.macs for o in found if o.module == "front end" or all_of_it) for all_of_it in (True, False))
    moved = sum(4 * (o.parameters + o.inputs + o.outputs + o.state) for o in found)
    speed = "audio_seconds_per_second"
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        **{name: score[name] for name in ("wer", "wer_low", "wer_high", "step")},
        "streaming_wer": score["streaming"][0]["wer"],
        "real_time_factor": score["streaming"][0]["real_time_factor"],
        "training_speed": statistics.median(line[speed] for line in steps if speed in line),
        "parameters": num_parameters(config),
        "front_end_share": front / macs,
        "macs_per_second_of_audio": macs / workload.seconds,
        "bytes_per_second_of_audio": moved / workload.seconds,
    }


def table(result: dict) -> str:
    """A line a front end."""
    lines = [
        f"{'':32}{'WER':>8}{'95 % interval':>20}{'streamed':>10}{'share':>8}{'MACs/s':>10}{'bytes/s':>11}"
        f"{'trained at':>12}{'real time':>11}"
    ]
    for row in result["rows"]:
        interval = f"{row['wer_low']:.2%} to {row['wer_high']:.2%}"
        lines.append(
            f"{row['base']:12}{row['front_end']:20}{row['wer']:8.2%}{interval:>20}{row['streaming_wer']:10.2%}"
            f"{row['front_end_share']:8.1%}{row['macs_per_second_of_audio'] / 1e6:8.1f} M"
            f"{row['bytes_per_second_of_audio'] / 1e6:8.1f} MB{row['training_speed']:10.1f} x"
            f"{row['real_time_factor']:11.4f}"
        )
    return "\n".join(lines)


def _script(name: str, *arguments: str) -> None:
    subprocess.run([sys.executable, name, *arguments], cwd=ROOT, check=True)
