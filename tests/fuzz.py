"""Damaged inputs: each is read right or refused with one clear error, without a traceback, a hang or a silent loss.

  make fuzz                                                  (10,000 inputs)
  python -m tests.fuzz --count=500 --seed=7 --kinds=audio,arpa
  python -m tests.fuzz --kinds=audio --first=123 --count=1 --keep=FOLDER       (one of them again)

An input depends on the seed, its kind and its number alone (a checkpoint also has random names in it). Files are read
in a process of their own, as the commands read them; some are also given to the commands themselves (--commands).
"""

import contextlib
import multiprocessing
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from absl import app, flags

from conformer import record, runtime, system
from tests.fuzz_mutations import Damage, damage

COUNT = flags.DEFINE_integer("count", 10_000, "Inputs, of all kinds together.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "The same seed makes the same inputs.")
KINDS = flags.DEFINE_list("kinds", None, "Kinds of input; default: all.")
FIRST = flags.DEFINE_integer("first", 0, "Number of the first input of each kind.")
COMMANDS = flags.DEFINE_integer("commands", 2, "Inputs of each kind that the commands are given too.")
KEEP = flags.DEFINE_string("keep", None, "Folder for the files that were found to be faults.")
JOBS = flags.DEFINE_integer("jobs", 2, "Processes that read at the same time.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "Write the counts to this file.")
BATCH = 1_000  # inputs that one process reads, at most
SECONDS = 120.0  # that an input may take; the first one of a process imports and compiles
LONGEST_ERROR = 2_000  # characters of one line


class Workshop:
    """A folder with the files of a kind, one of which is damaged at a time."""

    def __init__(self, kind: str, folder: pathlib.Path):
        from tests.fuzz_targets import TARGETS  # here, since it imports JAX

        self.kind, self.target = kind, TARGETS[kind]
        self._whole: dict[pathlib.Path, object] = {}
        self._files = [(path, path.read_bytes()) for path in self.target.make(folder)]

    def damaged(self, seed: int, number: int) -> tuple[pathlib.Path, Damage]:
        """An input: the file that is damaged, and how."""
        rng = random.Random(f"{seed}-{self.kind}-{number}")
        path, data = self._files[number % len(self._files)]
        return path, damage(data, rng, self.target.is_text)

    def attempt(self, seed: int, number: int) -> tuple[str, str]:
        """ "read", "refused" or "fault" with a line about it."""
        path, how = self.damaged(seed, number)
        if path not in self._whole:
            self._whole[path] = self.target.read(path)
        with self.holding(path, how):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    value = self.target.read(path)
            except ValueError as error:
                own = type(error).__module__.startswith("conformer") and 0 < len(str(error)) < LONGEST_ERROR
                if own and "\n" not in str(error):
                    return "refused", type(error).__name__
                return "fault", _describe(error)
            except Exception as error:
                return "fault", _describe(error)
        lost = self.target.lost(self._whole[path], value, how)
        return ("fault", f"silent loss in {path.name}: {lost}") if lost else ("read", "")

    @contextlib.contextmanager
    def holding(self, path: pathlib.Path, how: Damage):
        """The damaged file stands in the place of the whole one."""
        try:
            path.write_bytes(how.data)
            yield
        finally:
            path.write_bytes(dict(self._files)[path])


def _describe(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/conformer/" in frame.filename]
    where = " < ".join(f"{pathlib.Path(frame.filename).name}:{frame.lineno}" for frame in [place, *own[:-4:-1]])
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} at {where}"


def _work(kind: str, seed: int, numbers: range, results: Connection) -> None:
    """Sends (number, None) before an input and (number, outcome) behind it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print what they think
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(kind, pathlib.Path(folder))
        for number in numbers:
            results.send((number, None))
            results.send((number, workshop.attempt(seed, number)))


def run(kind: str, seed: int, numbers: range) -> tuple[Counter, dict[int, str]]:
    """Counts how many inputs of a kind were read, refused, or faults; returns the faults too. A dead process is one."""
    outcomes, faults = Counter(), {}
    context = multiprocessing.get_context("spawn")
    while numbers:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(kind, seed, numbers, theirs))
        process.start()
        theirs.close()
        at = numbers.start
        fault = None
        try:
            while numbers:
                if not mine.poll(SECONDS):
                    fault = f"no answer after {SECONDS:.0f} s"
                    break
                at, outcome = mine.recv()
                if outcome:
                    outcomes[outcome[0]] += 1
                    if outcome[0] == "fault":
                        faults[at] = outcome[1]
                    numbers = range(at + 1, numbers.stop)
        except EOFError:
            process.join()
            fault = f"the process died ({process.exitcode})"
        process.kill()
        process.join()
        if fault:
            outcomes["fault"] += 1
            faults[at] = fault
            numbers = range(at + 1, numbers.stop)
    return outcomes, faults


def command_faults(workshop: Workshop, seed: int, number: int) -> str:
    """Returns what is wrong with the end of a command that is given an input; "" if nothing is."""
    path, how = workshop.damaged(seed, number)
    with workshop.holding(path, how):
        command = [sys.executable, *workshop.target.command(path)]
        try:
            process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"{command[1]}: no end after {SECONDS:.0f} s"
    if process.returncode not in (0, 1) or "Traceback" in process.stderr:
        return f"{command[1]} ended with {process.returncode}: {process.stderr[-300:]}"
    return ""


def main(_: list[str]) -> None:
    from tests.fuzz_targets import TARGETS

    if unknown := set(KINDS.value or ()) - set(TARGETS):
        sys.exit(f"fuzz: --kinds={min(unknown)} is unknown: name some of {', '.join(TARGETS)}")
    system.check_writable(JSON.value)
    runtime.speak_plainly()
    kinds = KINDS.value or list(TARGETS)
    shares, began = sum(TARGETS[kind].share for kind in kinds), time.perf_counter()
    counts = {kind: max(1, round(COUNT.value * TARGETS[kind].share / shares)) for kind in kinds}
    with ThreadPoolExecutor(JOBS.value) as pool:
        batches = {
            kind: [
                pool.submit(run, kind, SEED.value, numbers[at : at + BATCH])
                for numbers in [range(FIRST.value, FIRST.value + count)]
                for at in range(0, count, BATCH)
            ]
            for kind, count in counts.items()
        }
    table, num_faults = {}, 0
    for kind, count in counts.items():
        outcomes, faults = Counter(), {}
        for batch in batches[kind]:
            outcomes += batch.result()[0]
            faults |= batch.result()[1]
        with tempfile.TemporaryDirectory() as folder:
            workshop = Workshop(kind, pathlib.Path(folder))
            tried = range(FIRST.value, FIRST.value + min(count, COMMANDS.value))
            said = {number: fault for number in tried if (fault := command_faults(workshop, SEED.value, number))}
            for number, fault in [*faults.items(), *said.items()]:
                path, how = workshop.damaged(SEED.value, number)
                print(f"  {kind} {number} ({path.name}, {' '.join(how.kinds)}): {fault}", flush=True)
                if KEEP.value:
                    pathlib.Path(KEEP.value).mkdir(parents=True, exist_ok=True)
                    pathlib.Path(KEEP.value, f"{kind}-{number}-{path.name}").write_bytes(how.data)
        num_faults += len(faults) + len(said)
        table[kind] = {"inputs": count, "read": outcomes["read"], "refused": outcomes["refused"]}
        table[kind] |= {"faults": outcomes["fault"], "commands": len(tried), "command_faults": len(said)}
        print(f"{kind:10} " + ", ".join(f"{value:,} {name}" for name, value in table[kind].items()), flush=True)
    if JSON.value:
        packages = ("numpy", "soundfile", "onnxruntime", "sentencepiece", "jax", "orbax-checkpoint")
        header = {"benchmark": "fuzz"} | record.describe_run(packages=packages) | {"seed": SEED.value}
        record.write(JSON.value, header | {"seconds": round(time.perf_counter() - began), "kinds": table})
    sys.exit(f"fuzz: {num_faults} faults" if num_faults else 0)


if __name__ == "__main__":
    app.run(main)
