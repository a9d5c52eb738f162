"""The flags that say which recogniser a command loads, and how it searches: those of transcribe.py and serve.py."""

import dataclasses
import functools
import gc
import pathlib
from collections.abc import Mapping

from absl import flags

from conformer import runtime, system
from conformer.api import CHUNK_SIZE, NUM_LEFT_CHUNKS, UNFIT_FOR_ARTEFACT, Model, find, load
from conformer.config import EXECUTIONS
from conformer.decode.search import Search, define_search_flags
from conformer.policy import POLICIES

DEFAULT = "english_small"


class ModelFlags:
    """Defines `--artefact`, `--workdir` and what goes with them; to be read once flags are parsed.

    Args:
        unfit: other flags that do not go with an artefact, and what to do instead.
    """

    def __init__(self, unfit: Mapping[str, str] | None = None):
        self._unfit = {"workdir": "name one of the two"} | dict(unfit or {})
        self._artefact = flags.DEFINE_string(
            "artefact", None, "File that export.py wrote, or its card, to run instead of a workdir."
        )
        self._workdir = flags.DEFINE_string(
            "workdir", DEFAULT, "Folder of a training run, or the name of a model that is shipped."
        )
        flags.DEFINE_integer("chunk-size", CHUNK_SIZE, "Encoder frames recognised at a time.", lower_bound=1)
        flags.DEFINE_integer("num-left-chunks", NUM_LEFT_CHUNKS, "Chunks of left context.", lower_bound=0)
        flags.DEFINE_integer("look-ahead", 0, "Encoder frames after a chunk that it sees.", lower_bound=0)
        flags.DEFINE_enum("numerics", None, list(POLICIES), "Numerics policy; default: that of the run's config.")
        flags.DEFINE_enum("execution", None, EXECUTIONS, "Layout of tensors; default: as trained.")
        self._read_search = define_search_flags()

    @property
    def workdir(self) -> pathlib.Path:
        """The work directory. Raises LoadError where there is none."""
        return find(self._workdir.value)

    @functools.cached_property
    def search(self) -> Search:
        """The settings of the search, those beside the model among them. Raises SearchError or DecodeError."""
        return self._read_search(pathlib.Path(self._artefact.value).parent if self._artefact.value else self.workdir)

    @system.no_collection()
    def load(self) -> Model:
        """Sets up the process for the model, and loads it. Raises ValueError for flags that it cannot follow."""
        remedies = UNFIT_FOR_ARTEFACT | self._unfit
        given = {name: flag.value for name in remedies if (flag := flags.FLAGS[name.replace("_", "-")]).present}
        if self._artefact.value:
            for name in given:
                raise ValueError(f"--{name.replace('_', '-')} does not go with --artefact: {remedies[name]}")
            runtime.speak_plainly()
        else:
            runtime.set_up()
        options = {name: value for name, value in given.items() if name in UNFIT_FOR_ARTEFACT}
        model = load(self._artefact.value or self._workdir.value, **options, **dataclasses.asdict(self.search))
        gc.freeze()  # nor do later collections go through what the command keeps to its end
        return model
