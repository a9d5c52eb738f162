"""The records in results/ made anew: what each needs, whether it is there, and a process a record.

A record names the command that made it. The command writes to runs/evidence. The new record takes the place of the old
one if it holds every row of that.
"""

import datetime
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.browser import find_browser
from benchmarks.peers import ROOT, peers_python
from conformer import record
from conformer.artefacts.formats import FORMATS
from conformer.config import Config, DataConfig

RESULTS = ROOT / "results"
HERE = ROOT / "runs" / "evidence"
BEGAN = HERE / "began"
HOW = {  # the beginning of a path: how to come by it
    "../shared/": "the real speech is not part of this repository",
    "books.lm": "docs/decoding.md, Language models, has the command",
    "runs/english_": "configs/english_small.py has the commands that train it",
    "runs/": "docs/checkpoints.md, Low precision, has the commands",
}
MINUTES = {  # on two cores that do nothing else, roughly; a record that was made here holds its own time
    "bandwidth_cpu": 3,
    "confidence_words": 2,
    "confidence_words_micro": 2,
    "copies": 1,
    "cost_cpu": 3,
    "data_cpu": 8,
    "device_cpu": 4,
    "english_small_search": 10,
    "front_ends_cpu": 5,
    "fuzz": 8,
    "half_precision": 15,
    "import_110m": 3,
    "micro": 2,
    "numerics": 2,
    "server_cpu": 5,
    "streaming_cpu": 5,
    "times_words": 1,
    "times_words_micro": 1,
    "training_cpu": 2,
    "transcription_cpu": 5,
    "web_cpu": 4,
}


CHUNKS = ("chunk_size", "num_left_chunks", "look_ahead")  # of exports; a record without them has those of export.py


class EvidenceError(ValueError):
    """A record that was not made anew; the message says why."""


class Entry(NamedTuple):
    """A record: its path below results/ without the ending, and what it holds."""

    name: str
    found: dict

    @property
    def path(self) -> pathlib.Path:
        return RESULTS / f"{self.name}.json"

    @property
    def log(self) -> pathlib.Path:
        return HERE / f"{self.name}.log"

    @property
    def command(self) -> list[str]:
        """The words behind `python`."""
        words = shlex.split(self.found["command"])
        return words[words[0] == "python" :]

    @property
    def minutes(self) -> float | None:
        """What it took, or is thought to take."""
        if (seconds := self.found.get("rerun_seconds")) is None and self.flag("sweep"):
            seconds = sum(self.found["seconds"].values())
        return MINUTES.get(self.name) if seconds is None else seconds / 60

    @property
    def weights(self) -> str:
        """Whether the models that were measured are those that are shipped: "present", "other", or "" for none."""
        models = self.found.get("models") or {}
        paths = {ROOT / folder / "weights.npz": known for folder, known in models.items()}
        same = all(path.exists() and record.hash_of(path) == known for path, known in paths.items())
        return ("present" if same else "other") if models else ""

    def flag(self, name: str) -> str | None:
        return next((word.partition("=")[2] for word in self.command if word.startswith(f"--{name}=")), None)

    def is_since(self, since: datetime.datetime) -> bool:
        """Returns whether it was made since then."""
        date = datetime.datetime.fromisoformat(self.found["date"])
        return (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)) >= since


def entries() -> list[Entry]:
    """Returns the records: those that take least time first, those of unknown time last."""
    paths = sorted(RESULTS.rglob("*.json"))
    found = [
        Entry(path.relative_to(RESULTS).with_suffix("").as_posix(), json.loads(path.read_text())) for path in paths
    ]
    return sorted(found, key=lambda entry: (entry.minutes is None, entry.minutes or 0))


def lacks(entry: Entry) -> str | None:
    """Returns what a record needs and this machine lacks; None where all is there."""
    if not any(word.startswith("--json=") for word in entry.command):
        return "its command writes no record (--json)"
    script = entry.command[0]
    if script != "-m" and not (ROOT / script).exists():
        return f"{script} does not exist"
    for path in _inputs(entry):
        if not (ROOT / path).exists():
            how = next((how for beginning, how in HOW.items() if path.startswith(beginning)), "")
            return f"{path} is not there" + (f": {how}" if how else "")
    if isinstance(device := entry.found.get("device"), dict) and "gpu" in device and not shutil.which("nvidia-smi"):
        return f"it was measured on a {device['gpu']}"
    try:
        if check := NEEDS.get(entry.found.get("benchmark", "")):
            check()
    except ValueError as error:
        return str(error)
    return None


def _inputs(entry: Entry) -> Iterator[str]:
    """Yields the paths that a command reads, as far as they can be known."""
    if sweep := entry.flag("sweep"):
        yield sweep
        if (ROOT / sweep).exists():
            from conformer.sweep import load_sweep  # imports what trains

            for trial in load_sweep(str(ROOT / sweep)).trials:
                yield from _speech(trial.resolve().data)
        return
    for flag in ("workdir", "source", "outside", "lm"):
        for path in filter(None, (entry.flag(flag) or "").split(",")):
            yield path
            if (config := ROOT / path / "config.json").exists() and entry.found.get("benchmark") not in NO_SPEECH:
                yield from _speech(Config.from_json(config).data)


def _speech(data: DataConfig) -> list[str]:
    return [path for path in (data.source, *data.also_train) if "/" in path]


def _find_vela() -> None:
    from benchmarks.micro import find_vela  # imports JAX

    find_vela()


def _find_iree() -> None:
    from benchmarks.compiled_half import available  # imports JAX

    if not available():
        raise EvidenceError("IREE is not installed: pip install -e '.[iree]'")


def _find_programs(*names: str) -> Callable[[], None]:
    def check() -> None:
        if missing := [name for name in names if not shutil.which(name)]:
            raise EvidenceError(f"{' and '.join(missing)} not installed")

    return check


def _find_browser() -> None:
    _find_programs("npm")()
    if not find_browser():
        raise EvidenceError("Chromium is not installed")


NO_SPEECH = ("long_audio", "differences", "silence")  # of the measurements of a model
NEEDS: dict[str, Callable[[], object]] = {
    "training": peers_python,
    "streaming": peers_python,
    "micro": _find_vela,
    "half_precision": _find_iree,
    "device": _find_programs("cc", "valgrind"),
    "web": _find_browser,
}


def start_of_round() -> datetime.datetime:
    """Returns when the round began that has not ended; a new one begins where there is none."""
    if BEGAN.exists():
        return datetime.datetime.fromisoformat(BEGAN.read_text().strip())
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def rerun(entry: Entry, since: datetime.datetime) -> float:
    """Makes a record anew, and returns the seconds that it took.

    Raises:
        EvidenceError: where a process failed, or the new record holds less than the old one, which stays then.
    """
    output = HERE / "results" / f"{entry.name}.json"
    begun = entry.log.exists() and entry.log.stat().st_mtime >= since.timestamp()
    if not begun:  # what an earlier round has left is not taken for this one's
        output.unlink(missing_ok=True)
        if entry.flag("sweep") and (folder := ROOT / str(entry.flag("workdir"))).exists():
            folder.rename(f"{folder}.before-{since:%Y%m%d-%H%M%S}")
    output.parent.mkdir(parents=True, exist_ok=True)
    entry.log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with entry.log.open("a") as log:
        for words in [*_exports(entry), [_redirected(word) for word in entry.command]]:
            print(f"$ python {shlex.join(words)}", file=log, flush=True)
            done = subprocess.run([sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            if done.returncode:
                last = entry.log.read_text(errors="replace").strip().splitlines()[-1]
                raise EvidenceError(f"status {done.returncode}, {last[:200]!r}: {_shown(entry.log)} has the rest")
    if not output.exists():
        raise EvidenceError(f"it wrote no record: {_shown(entry.log)} has what it said")
    found = json.loads(output.read_text().replace(f"{_shown(HERE)}/", ""))
    if missing := _missing(entry.found, found):
        raise EvidenceError(f"the new record lacks {', '.join(missing)}: it stays in {_shown(output)}")
    seconds = time.monotonic() - began
    record.write(entry.path, found | {"rerun_seconds": round(seconds, 1)})
    output.unlink()
    return seconds


def _exports(entry: Entry) -> Iterator[list[str]]:
    """Yields the commands that write the artefacts that parity.py compares, unless they are shipped ones."""
    if entry.command[0] != "parity.py" or (folder := entry.command[1]).startswith("models/"):
        return
    sizes = [f"--{key.replace('_', '-')}={value}" for key in CHUNKS if (value := entry.found.get(key))]
    for kind in FORMATS:
        beginning = f"{kind.replace('-', '_')}_"
        for name in entry.found["rows"]:
            if name.startswith(beginning) and " " not in name:  # "litert_int8 without XNNPACK" is the same file
                numerics = name.removeprefix(beginning).replace("_", "-")
                flags = (f"--workdir={entry.flag('workdir')}", f"--format={kind}", f"--numerics={numerics}", *sizes)
                yield ["export.py", *flags, f"--out={folder}"]


def _redirected(word: str) -> str:
    """Returns an argument, with the record below HERE in place of results/."""
    return word.replace("--json=", f"--json={_shown(HERE)}/") if word.startswith("--json=") else word


def _missing(old: dict, new: dict) -> list[str]:
    """Returns the rows that an old record has and a new one lacks."""
    before, now = old.get("rows", {}), new.get("rows", {})
    if isinstance(before, dict) and isinstance(now, dict):
        return [name for name in before if name not in now]
    return [f"{len(before) - len(now)} rows"] if len(now) < len(before) else []


def _shown(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()
