"""A sweep: a list of trials, each a model and the way it is evaluated.

A sweep file holds `get_sweep() -> Sweep`. A trial names a config to train, or the folder of a model that is there
already. Trials with equal configs share one training, which lies in the folder of the first of them.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from conformer.config import EXECUTIONS, Config, ConfigError, load_config, load_module
from conformer.decode.search import Search
from conformer.policy import get_policy


class SweepError(ValueError):
    """A sweep that cannot be run as it is; the message names the trial and the remedy."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One model and one way of decoding, scored once whole and once as streams for each of `chunk_sizes`."""

    name: str  # of its folder, and in the table
    config: str = ""  # config file to train, with its argument after a colon
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {"model.encoder_dim": 96}
    model: str = ""  # in place of a config: folder of a trained model
    split: str = "test"
    chunk_sizes: tuple[int, ...] = ()  # encoder frames
    num_left_chunks: int = 4
    masked: bool = False  # the words of streams in batches, without their times
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {"beam_size": 64}; {} = as kept by the model
    numerics: str = "float32"
    execution: str = "sequence"

    def resolve(self) -> Config:
        """The configuration that is trained, or was. Raises ConfigError."""
        if self.model:
            return Config.from_json(pathlib.Path(self.model) / "config.json")
        return load_config(self.config, self.overrides)

    def definition(self) -> dict[str, Any]:
        """Everything that its results follow from, as JSON holds it."""
        values = dataclasses.asdict(dataclasses.replace(self, overrides={}))
        del values["name"], values["overrides"], values["config"]
        return json.loads(json.dumps(values | {"config": dataclasses.asdict(self.resolve())}))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Trials, and what is to be learned from them."""

    description: str
    trials: tuple[Trial, ...]

    def __post_init__(self):
        names = [trial.name for trial in self.trials]
        if not names:
            raise SweepError("the sweep holds no trial: add some to get_sweep()")
        for trial in self.trials:
            if not re.fullmatch(r"\w[\w.-]*", trial.name) or names.count(trial.name) > 1:
                raise SweepError(f"trial {trial.name!r}: names are folders: letters, digits and _.-, each name once")
            if bool(trial.config) == bool(trial.model) or (trial.model and trial.overrides):
                raise SweepError(f"trial {trial.name}: give a config, with overrides or without, or a trained model")
            if trial.execution not in EXECUTIONS:
                raise SweepError(f"trial {trial.name}: execution={trial.execution!r} is not one of {EXECUTIONS}")
            try:
                Search(**trial.search)
                get_policy(trial.numerics)
                trial.resolve()
            except (ValueError, TypeError) as error:  # TypeError: a setting that no search has
                raise SweepError(f"trial {trial.name}: {error}") from None

    def select(self, names: Iterable[str]) -> list[Trial]:
        """The trials of these names. Raises SweepError for one that does not exist."""
        known = {trial.name: trial for trial in self.trials}
        for name in names:
            if name not in known:
                raise SweepError(f"--trial={name} is not one of {', '.join(known)}")
        return [known[name] for name in names]

    def models(self) -> list[list[Trial]]:
        """The trials by what has to be trained for them: together where it is the same, alone where it is nothing."""
        groups: list[tuple[Config | None, list[Trial]]] = []
        for trial in self.trials:
            config = None if trial.model else trial.resolve()
            same = [trials for other, trials in groups if config is not None and other == config]
            if same:
                same[0].append(trial)
            else:
                groups.append((config, [trial]))
        return [trials for _, trials in groups]


def load_sweep(path: str) -> Sweep:
    """`get_sweep()` of a file. Raises SweepError."""
    try:
        module = load_module(path)
    except ConfigError:
        raise SweepError(f"--sweep={path} does not exist: name a file such as configs/sweeps/layout.py") from None
    if not hasattr(module, "get_sweep"):
        raise SweepError(f"--sweep={path} has no function get_sweep() -> Sweep")
    return module.get_sweep()
