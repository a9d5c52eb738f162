"""Runs trials as processes of train.py and eval.py, a few at a time, and finds again what is done.

The folder of a trial holds `trial.json` once it is finished, `scores.json` (eval.py's record), `errors.jsonl`,
`train.log` and `eval.log`; a trial that is trained has its run there too, as train.py leaves it.
"""

import dataclasses
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TextIO

from conformer import record, system
from conformer.config import Config
from conformer.sweep.figures import figures
from conformer.sweep.trials import Sweep, SweepError, Trial

POLL_SECONDS, REPORT_SECONDS = 0.1, 60.0


class _Job(NamedTuple):
    """A process to be run."""

    trial: Trial
    command: list[str]
    log: pathlib.Path


type _Work = Generator[_Job, int | None]  # the processes that one model needs; it is sent the exit status of each


class _Running(NamedTuple):
    job: _Job
    process: subprocess.Popen
    rest: _Work
    lock: TextIO  # of the model's folder
    slot: int


def run_sweep(
    sweep: Sweep, workdir: pathlib.Path, trials: Sequence[Trial], jobs: int, say: Callable[[str], None]
) -> dict[str, str]:
    """Runs those of `trials` that are not finished, at most `jobs` processes at a time.

    What another sweep works on comes last, once that one has ended or is done with it.

    Returns:
        Why trials failed, by name; the others are finished.

    Raises:
        SweepError: for a finished trial whose definition has changed since; before anything runs.
    """
    for trial in sweep.trials:
        read_trial(workdir, trial)
    failures: dict[str, str] = {}
    unfinished = [trial for trial in trials if read_trial(workdir, trial) is None]
    waiting = [group for group in sweep.models() if any(trial in unfinished for trial in group)]
    running: list[_Running] = []
    told: set[str] = set()  # of which models it was said that another process works on them
    ended = len(trials) - len(unfinished)
    say(f"{ended} of {len(trials)} trials are finished already")
    reported = time.monotonic()
    try:
        while waiting or running:
            for slot in set(range(jobs)) - {entry.slot for entry in running}:
                with system.interrupts_held():  # else a process could begin that nobody knows of
                    if taken := _take(workdir, waiting, told, say):
                        group, lock = taken
                        left = [trial for trial in group if trial in unfinished and not read_trial(workdir, trial)]
                        running += _start(_work(workdir, group[0], left, failures), None, lock, slot, jobs, say)
            time.sleep(POLL_SECONDS)
            done = [entry for entry in running if entry.process.poll() is not None]
            for entry in done:
                with system.interrupts_held():
                    running.remove(entry)
                    running += _start(entry.rest, entry.process.returncode, entry.lock, entry.slot, jobs, say)
            if done:
                records = [found for trial in trials if (found := read_trial(workdir, trial))]
                if len(records) + len(failures) > ended:
                    ended = len(records) + len(failures)
                    say(_progress(ended, len(trials), failures, [found["seconds"] for found in records], jobs))
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                for entry in running:
                    say(f"{entry.job.trial.name}: {_last_line(entry.job.log)}")
    finally:
        with system.interrupts_held():
            _stop(running)
    return failures


def read_trial(workdir: pathlib.Path, trial: Trial) -> dict | None:
    """The record of a finished trial, None for another. Raises SweepError where it was defined otherwise."""
    path = workdir / trial.name / "trial.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    defaults = _flat({"masked": False, "config": dataclasses.asdict(Config())})  # of keys that came after the record
    stored, now = defaults | _flat(found["definition"]), _flat(trial.definition())
    if changed := [key for key in sorted(stored | now) if stored.get(key) != now.get(key)]:
        stale = path.parent if any(key.startswith("config.") for key in changed) else path  # a training is kept
        raise SweepError(
            f"trial {trial.name} was finished with other values of {', '.join(changed)}: give the new one another "
            f"name, choose another --workdir, or remove {stale} to run it again"
        )
    return found


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """{"config": {"seed": 0}} as {"config.seed": 0}."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return json.loads(json.dumps(flat))


def _take(
    workdir: pathlib.Path, waiting: list[list[Trial]], told: set[str], say: Callable[[str], None]
) -> tuple[list[Trial], TextIO] | None:
    """Removes the first model that nobody works on, and locks the folder of its first trial.

    This sweep and the processes that it starts there hold the lock as long as one of them lives: nothing begins while
    something is left of a sweep that was killed.
    """
    for group in waiting:
        name, folder = group[0].name, workdir / group[0].name
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            if name not in told:
                say(f"{name}: another process is at work in {folder}; this trial waits for its end")
            told.add(name)
        else:
            waiting.remove(group)
            return group, lock
    return None


def _work(workdir: pathlib.Path, owner: Trial, trials: Sequence[Trial], failures: dict[str, str]) -> _Work:
    """Yields the processes that one model needs, one after the other: training, then each trial's evaluation."""
    model, began = pathlib.Path(owner.model or workdir / owner.name), time.monotonic()
    # A checkpoint's folder gets its name once it is complete.
    if owner.config and not (model / "checkpoints" / str(owner.resolve().train.num_steps)).is_dir():
        overrides = [f"--config.{key}={value}" for key, value in owner.overrides.items()]
        command = ["train.py", f"--config={owner.config}", *overrides, f"--workdir={model}"]
        log = model / "train.log"
        if status := (yield _Job(owner, command, log)):
            failures |= {trial.name: _reason(status, log) for trial in trials}
            return
    for trial in trials:
        folder = workdir / trial.name
        log = folder / "eval.log"
        command = [
            "eval.py",
            f"--workdir={model}",
            f"--split={trial.split}",
            f"--numerics={trial.numerics}",
            f"--execution={trial.execution}",
            f"--errors={folder / 'errors.jsonl'}",
            f"--json={folder / 'scores.json'}",
            *(f"--{name.replace('_', '-')}={_shown(value)}" for name, value in trial.search.items()),
        ]
        if trial.chunk_sizes:
            sizes = ",".join(map(str, trial.chunk_sizes))
            command += [f"--chunk-size={sizes}", f"--num-left-chunks={trial.num_left_chunks}"]
            command += ["--masked" if trial.masked else "--streaming"]
        if status := (yield _Job(trial, command, log)):
            failures[trial.name] = _reason(status, log)
        else:
            scores = json.loads((folder / "scores.json").read_text())
            circumstances = {"seconds": time.monotonic() - began, "load_average": os.getloadavg()[0]}
            found = {"rows": figures(trial, model, scores), "scores": scores} | circumstances
            record.write(folder / "trial.json", {"definition": trial.definition()} | found)
        began = time.monotonic()


def _shown(value: Any) -> str:
    """A setting as a flag takes it."""
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def _start(
    work: _Work, status: int | None, lock: TextIO, slot: int, jobs: int, say: Callable[[str], None]
) -> list[_Running]:
    """Starts the next process of a model's work; where there is none, unlocks its folder."""
    try:
        job = work.send(status)
    except StopIteration:
        lock.close()
        return []
    job.log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{job.trial.name}: {job.command[0]}, log in {job.log}")
    return [_Running(job, _launch(job, lock, slot, jobs), work, lock, slot)]


def _launch(job: _Job, lock: TextIO, slot: int, jobs: int) -> subprocess.Popen:
    """A process that holds `lock` as long as it lives, even where it outlives this one."""
    command, environment = [sys.executable, *job.command], os.environ | {"PYTHONUNBUFFERED": "1"}
    cores = system.cores()  # its share of them: times of one core are then its own
    with job.log.open("a") as log, system.on_cores(cores[slot % len(cores) :: jobs]):
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock.fileno()]
        )


def _stop(running: Sequence[_Running]) -> None:
    """Ends them, and returns when nothing of them is left; train.py resumes from its newest checkpoint."""
    for entry in running:
        entry.process.kill()
    for entry in running:
        entry.process.wait()
        entry.lock.close()
        with open(entry.lock.name, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # its own processes hold the lock too, until they have ended


def _progress(ended: int, trials: int, failures: dict[str, str], seconds: Sequence[float], jobs: int) -> str:
    line = f"{ended} of {trials} trials done" + (f", {len(failures)} of them failed" if failures else "")
    if seconds and ended < trials:
        minutes = sum(seconds) / len(seconds) * (trials - ended) / jobs / 60
        line += f"; about {minutes:.0f} minutes left if the others take as long"
    return line


def _reason(status: int, log: pathlib.Path) -> str:
    killed = f"killed by signal {-status} after " if status < 0 else ""
    return f"{killed}{_last_line(log)} ({log})"


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
