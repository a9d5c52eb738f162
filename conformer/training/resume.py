"""Binds a work directory to the configuration and the utterances that its run began with."""

import hashlib
import json
import pathlib

from conformer import system
from conformer.config import Config, ConfigError
from conformer.data import Corpus
from conformer.data.manifest import DataError
from conformer.data.records import Utterances
from conformer.training.checkpoint import WEIGHTS_FILE, Checkpoints

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
# Keys that have no effect on what a run learns: they may change when it resumes.
FREE = {
    "data.source",  # moved; that it holds the same utterances is checked by itself
    "data.also_train",
    "data.eval_splits",
    "data.num_workers",
    "data.max_dropped_share",
    "data.max_broken_share",
    "train.fsdp",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.max_skipped_steps",
}
# Keys that a run fills in for itself, and the values that say so.
FILLED_IN = {"data.bucket_seconds": (), "model.vocab_size": 0}


def resumed(config: Config, workdir: pathlib.Path, extend: int | None) -> Config:
    """The configuration to go on with in a work directory, or to begin with in a new one.

    Args:
        extend: updates beyond `config.train.num_steps`, for a run that is finished; None to finish one.

    Raises:
        ConfigError: for values other than those the run began with, by name; for a run that cannot be extended.
    """
    if (workdir / WEIGHTS_FILE).exists():
        raise ConfigError(
            f"{workdir} holds the weights of a finished model, and no run: choose another --workdir, and begin with "
            f"them by --config.train.init_from={workdir}"
        )
    path = workdir / CONFIG_FILE
    if not path.exists():
        if extend is not None:
            raise ConfigError(f"{workdir} has no run to be trained on: leave --extend out")
        return config
    stored = Config.from_json(path)
    now, then = (dict(values.items()) for values in (config, stored))
    config = config.replace({key: then[key] for key, unset in FILLED_IN.items() if now[key] == unset})
    if extend is not None:
        config = _extended(config, stored, workdir, extend)
    if keys := set(config.differences(stored)) - FREE - ({"train.num_steps"} if extend is not None else set()):
        remedy = "choose another --workdir"
        if keys == {"train.num_steps"} and (more := abs(config.train.num_steps - stored.train.num_steps)):
            steps = min(config.train.num_steps, stored.train.num_steps)
            remedy += f", or train it on: --config.train.num_steps={steps} --extend={more}"
        raise ConfigError(f"{workdir} belongs to a run with other values of {', '.join(sorted(keys))}: {remedy}")
    return config


def _extended(config: Config, stored: Config, workdir: pathlib.Path, extend: int) -> Config:
    """Returns the configuration for more updates than the run had. The same command again goes on with them."""
    total, planned = config.train.num_steps + extend, stored.train.num_steps
    if total < planned:
        raise ConfigError(f"--extend={extend}: {workdir} is trained for {planned} updates already: raise it")
    done = Checkpoints(workdir, create=False).latest_step() or 0
    if total > planned > done:
        raise ConfigError(f"{workdir} is at update {done} of {planned}: finish it first, without --extend")
    return config.replace({"train.num_steps": total})


def bind(config: Config, workdir: pathlib.Path, digest: dict[str, int | str]) -> None:
    """Makes a work directory that of a run, or notes what has changed in it."""
    system.write_text(workdir / CONFIG_FILE, config.to_json())
    system.write_text(workdir / DATA_FILE, json.dumps(digest) + "\n")


def check_data(workdir: pathlib.Path, digest: dict[str, int | str]) -> None:
    """Raises DataError where a run began with other utterances. One without `data.json` is not looked at."""
    path = workdir / DATA_FILE
    if path.exists() and (then := json.loads(path.read_bytes())) != digest:
        raise DataError(
            f"data.source has {digest['utterances']} utterances to train on, which are not the {then['utterances']} "
            f"that {workdir} began with: restore them, choose another --workdir, or train it on with these: --extend"
        )


def digest_of(utterances: Utterances) -> dict[str, int | str]:
    """Returns the number of utterances and a hash of them, which tell them from others, wherever their files lie."""
    parts = (
        utterances.checksums()
        if isinstance(utterances, Corpus)
        else (f"{u.id}\t{u.text}\t{u.duration:.3f}\n" for u in utterances)
    )
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.encode())
    return {"utterances": len(utterances), "sha256": hashed.hexdigest()}
