"""Trains on the embedded corpus, scores voices never heard, and transcribes one recording as a stream on one core.

  python demo.py [--json=FILE]

Everything is written to runs/demo. A run that was interrupted goes on where it stopped.
"""

from conformer import interrupts  # first: from here on, Ctrl-C is one line

# isort: split
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

from conformer import record, system
from conformer.config import Config
from conformer.cost import num_parameters

ROOT = pathlib.Path(__file__).resolve().parent
WORKDIR = pathlib.Path("runs", "demo")
TEST, EXAMPLE = WORKDIR / "test.json", WORKDIR / "example.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains, scores and streams the embedded example.")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the figures to this file")
    path = parser.parse_args().json

    results = record.describe_run()
    fresh = not (ROOT / WORKDIR / "checkpoints").exists()
    seconds = step("train.py", "--config=configs/demo.py", f"--workdir={WORKDIR}")
    step("eval.py", f"--workdir={WORKDIR}", "--split=test", f"--json={TEST}")
    one_core = ["--one-core"] if hasattr(os, "sched_setaffinity") else []
    step("transcribe.py", f"--workdir={WORKDIR}", "--example", "--realtime", *one_core, f"--json={EXAMPLE}")

    config = Config.from_json(ROOT / WORKDIR / "config.json")
    score, (example,) = (json.loads((ROOT / file).read_text()) for file in (TEST, EXAMPLE))
    results |= {
        "wer": score["wer"],
        "wer_low": score["wer_low"],
        "wer_high": score["wer_high"],
        "words": score["words"],
        "real_time_factor": example["rtf"],
        "one_core": bool(one_core),
        "parameters": num_parameters(config),
        "training_minutes": seconds / 60 if fresh else None,  # unknown for a run that was resumed
    }
    print(f"\n{table(results)}")
    if path:
        record.write(path, results)


def step(script: str, *arguments: str) -> float:
    """Runs a script of this folder with its output shown; returns its seconds. Exits when the script fails."""
    print(f"\n$ python {script} {' '.join(arguments)}", flush=True)
    start = time.perf_counter()
    with system.interrupts_held():  # the script has been interrupted, too, and ends as it should
        status = subprocess.run([sys.executable, script, *arguments], cwd=ROOT).returncode
    if status:
        sys.exit(f"demo.py: {script} failed (status {status}); its message is above")
    return time.perf_counter() - start


def table(results: dict) -> str:
    """The figures, a line each."""
    minutes = results["training_minutes"]
    cores = "one core" if results["one_core"] else "all cores"
    rows = {
        "word error rate, voices never heard": f"{results['wer']:.2%} (95 % interval {results['wer_low']:.2%} to "
        f"{results['wer_high']:.2%}, {results['words']} words)",
        f"real-time factor, {cores}": f"{results['real_time_factor']:.3f}",
        "parameters": f"{results['parameters']:,}",
        "training": "resumed from an earlier run, not timed" if minutes is None else f"{minutes:.1f} minutes",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


if __name__ == "__main__":
    with interrupts.in_one_line():
        main()
