"""Makes the records in results/ anew, each by the command that it names, and then docs/results.md.

  python evidence.py                          # all; the same command again goes on where it stopped
  python evidence.py --list                   # what would be made, what it needs, and how long it takes
  python evidence.py --only='english_*,sweeps/*' --skip='*_cpu'
  python evidence.py --since=2026-11-29       # those that were made before that day

Records that need what is not here are named with the reason. One that fails is named, its old record stays, and the
others go on. The new records of a round are those since it began; a round ends when nothing is left. Records of times
(*_cpu, import_110m) want a machine that does nothing else. Logs: runs/evidence.
"""

from conformer import interrupts  # first: from here on, Ctrl-C is one line

# isort: split
import datetime
import fnmatch
import os
import subprocess
import sys

from absl import flags

from benchmarks import evidence, harness
from benchmarks.evidence import Entry
from conformer.command import run_command

ONLY = flags.DEFINE_list("only", ["*"], "Names of records, with wildcards, without results/ and .json.")
SKIP = flags.DEFINE_list("skip", [], "Leave these out.")
SINCE = flags.DEFINE_string("since", None, "Make those that are older, ISO date; default: when this round began.")
LIST = flags.DEFINE_bool("list", False, "Make none; list them.")


def main(_) -> None:
    try:
        since = datetime.datetime.fromisoformat(SINCE.value) if SINCE.value else evidence.start_of_round()
    except ValueError:
        sys.exit(f"evidence.py: --since={SINCE.value} is no date: write one such as 2026-11-29")
    since = since if since.tzinfo else since.replace(tzinfo=datetime.UTC)
    chosen = [entry for entry in evidence.entries() if is_chosen(entry.name)]
    if not chosen:
        sys.exit(f"evidence.py: no record is called {','.join(ONLY.value)}: --list lists them")
    lacking = {entry.name: lack for entry in chosen if (lack := evidence.lacks(entry))}
    left = [entry for entry in chosen if entry.name not in lacking and not entry.is_since(since)]
    if LIST.value:
        print_list(chosen, lacking, left)
        return
    print(f"{summary(left)}; {len(lacking)} lack something here", flush=True)
    for name, lack in lacking.items():
        print(f"  {name}: {lack}")
    if (load := os.getloadavg()[0]) > harness.BUSY:
        print(f"The load average is {load:.1f}: times that are measured now are those of a busy machine.")
    try:
        failures = make(left, since)
    except KeyboardInterrupt:
        interrupts.leave("the same command goes on")
    subprocess.run([sys.executable, "report.py"], cwd=evidence.ROOT, check=True)
    if failures:
        sys.exit(f"evidence.py: {len(failures)} failed, the old records stay: {', '.join(failures)}")


def is_chosen(name: str) -> bool:
    return any(fnmatch.fnmatch(name, glob) for glob in ONLY.value) and not any(
        fnmatch.fnmatch(name, glob) for glob in SKIP.value
    )


def make(left: list[Entry], since: datetime.datetime) -> list[str]:
    """Makes the records anew, one after the other. Returns the names of those that failed."""
    evidence.BEGAN.parent.mkdir(parents=True, exist_ok=True)
    evidence.BEGAN.write_text(since.isoformat())
    failures = []
    for number, entry in enumerate(left, 1):
        print(f"[{number}/{len(left)}] {entry.name} ({minutes(entry)}): python {' '.join(entry.command)}", flush=True)
        try:
            print(f"    {evidence.rerun(entry, since) / 60:.1f} minutes", flush=True)
        except evidence.EvidenceError as error:
            failures.append(entry.name)
            print(f"    FAILED: {error}", flush=True)
    if not failures:
        evidence.BEGAN.unlink()
    return failures


def print_list(chosen: list[Entry], lacking: dict[str, str], left: list[Entry]) -> None:
    """A line a record: its name, when it was made, whether of the shipped weights, what it takes, and what it needs."""
    now = datetime.datetime.now(datetime.UTC)
    for entry in chosen:
        made = datetime.datetime.fromisoformat(entry.found["date"])
        days = (now.date() - made.date()).days
        state = lacking.get(entry.name, "to be made" if entry in left else "made in this round")
        weights = {"": "no weights"}.get(entry.weights, f"{entry.weights} weights")
        print(f"{entry.name:24}{days:3} days  {weights:16}{minutes(entry):>13}  {state}")
    print(summary(left))


def summary(left: list[Entry]) -> str:
    known = [entry.minutes for entry in left if entry.minutes is not None]
    unknown = f", and {len(left) - len(known)} of unknown time" if len(known) < len(left) else ""
    return f"{len(left)} records to be made: {sum(known) / 60:.1f} hours{unknown}"


def minutes(entry: Entry) -> str:
    return "unknown time" if entry.minutes is None else f"{entry.minutes:.1f} minutes"


if __name__ == "__main__":
    run_command(main)
