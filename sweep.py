"""Runs a list of trials, trained or only evaluated, and puts them into one table.

  python sweep.py --sweep=configs/sweeps/layout.py --workdir=runs/layout
  python sweep.py --sweep=configs/sweeps/subsampling.py --workdir=runs/subsampling --jobs=2
  python sweep.py --sweep=configs/sweeps/size.py --workdir=runs/size --commands    one command a model, for a scheduler

The same command again resumes: finished trials are not repeated, trainings go on from their checkpoints, failed trials
are tried again. The work directory gets a folder a trial, table.csv, table.md, index.html and sweep.json.
docs/sweeps.md says how to write a sweep, and how to run one on a cluster.
"""

from conformer import interrupts  # first: from here on, Ctrl-C is one line

# isort: split
import pathlib
import shlex
import signal
import sys

from absl import flags

from conformer import record
from conformer.command import run_command
from conformer.sweep import Sweep, load_sweep, run_sweep
from conformer.sweep.paired import paired
from conformer.sweep.schedule import read_trial
from conformer.sweep.table import csv_table, markdown_table, page
from conformer.system import write_text

SWEEP = flags.DEFINE_string("sweep", None, "File that holds get_sweep() -> Sweep.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; created if it does not exist.", required=True)
JOBS = flags.DEFINE_integer("jobs", 1, "Processes at a time; each gets its share of the cores.", lower_bound=1)
TRIAL = flags.DEFINE_list("trial", [], "Run these trials alone, comma separated, and write no table.")
COMMANDS = flags.DEFINE_bool("commands", False, "Run nothing: print a command for each model that is not finished.")
JSON = flags.DEFINE_string("json", None, "Also write the record, sweep.json, to this file.")


def main(_) -> None:
    signal.signal(signal.SIGTERM, interrupt)
    try:
        failures = run(pathlib.Path(WORKDIR.value))
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"sweep.py: {error}")
    except OSError as error:
        sys.exit(f"sweep.py: {error}: check the free space and the permissions of {WORKDIR.value}; then it resumes")
    except KeyboardInterrupt:
        interrupts.leave("the same command resumes")
    if failures:
        sys.exit(f"sweep.py: {len(failures)} trials failed: {', '.join(failures)}")


def run(workdir: pathlib.Path) -> dict[str, str]:
    """Runs the trials that the flags ask for. Returns why trials failed, by name."""
    sweep = load_sweep(SWEEP.value)
    trials = sweep.select(TRIAL.value) if TRIAL.value else sweep.trials
    if COMMANDS.value:
        print_commands(sweep, workdir)
        return {}
    models = sorted({trial.model for trial in trials if trial.model})
    circumstances = record.describe_run(*models)
    workdir.mkdir(parents=True, exist_ok=True)
    failures = run_sweep(sweep, workdir, trials, JOBS.value, lambda line: print(line, flush=True))
    if not TRIAL.value:
        write_results(sweep, workdir, failures, circumstances)
    return failures


def print_commands(sweep: Sweep, workdir: pathlib.Path) -> None:
    """Trials that share a training share a command."""
    for group in sweep.models():
        if names := [trial.name for trial in group if read_trial(workdir, trial) is None]:
            arguments = [f"--sweep={SWEEP.value}", f"--workdir={workdir}", f"--trial={','.join(names)}"]
            print(shlex.join(["python", "sweep.py", *arguments]))


def write_results(sweep: Sweep, workdir: pathlib.Path, failures: dict[str, str], circumstances: dict) -> None:
    """The table in its three forms, and the record."""
    trials = {trial.name: found for trial in sweep.trials if (found := read_trial(workdir, trial))}
    rows = [row for found in trials.values() for row in found["rows"]]
    name = pathlib.Path(SWEEP.value).stem
    result = circumstances | {"sweep": name, "description": sweep.description, "rows": rows, "failures": failures}
    searches = {name: found["definition"].get("search", {}) for name, found in trials.items()}
    result["paired"] = paired(workdir, searches)
    result |= {"seeds": {name: found["definition"]["config"]["seed"] for name, found in trials.items()}}
    for key, value in {"commands": "command", "dates": "date", "devices": "device"}.items():
        result[key] = {name: found["scores"][value] for name, found in trials.items()}
    for key in ("seconds", "load_average", "definition"):
        result[key] = {name: found[key] for name, found in trials.items()}
    write_text(workdir / "table.csv", csv_table(rows, failures))
    write_text(workdir / "table.md", markdown_table(rows, failures))
    command = f"python {circumstances['command']}"
    write_text(workdir / "index.html", page(f"Sweep: {name}", sweep.description, rows, failures, command))
    for path in filter(None, (workdir / "sweep.json", JSON.value)):
        record.write(path, result)
    print(f"\n{markdown_table(rows, failures)}\n{workdir / 'index.html'}")


def interrupt(*_) -> None:
    """A scheduler's SIGTERM ends a sweep as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
