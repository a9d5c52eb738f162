"""Checkpoints of a run: written in the background, complete or absent, newest first."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conformer import system
from conformer.config import Config
from conformer.model import ConformerCTC
from conformer.tokenizer import Tokenizer, load_tokenizer
from conformer.training.names import by_name, without_value

WEIGHTS_FILE = "weights.npz"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the folder and the remedy."""


class Checkpoints:
    """The checkpoints of a work directory, by step.

    Orbax writes each into a temporary folder and renames it when it is complete, so that a killed run leaves the one
    before intact; the parameters are copied first, and training goes on while they are written.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 2, create: bool = True):
        """`create` makes the folder; without it, and without the folder, raises CheckpointError."""
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        if not create and not self.folder.is_dir():
            raise self._nothing()
        import orbax.checkpoint as ocp  # here: released weights load without it, and sooner

        self._orbax: Any = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create, read_only=not create)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=ocp.PyTreeCheckpointHandler())

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts writing a `TrainState`; a failure of this or the previous write (a full disk, say) raises
        CheckpointError.
        """
        try:
            self._manager.save(step, args=self._orbax.args.PyTreeSave(by_name(state)))
        except Exception as error:
            with contextlib.suppress(Exception):  # the one before may still be on its way
                self._manager.wait_until_finished()
            raise self._write_error(step, error) from error

    def wait(self) -> None:
        """Returns when everything is on disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(self.latest_step(), error) from error

    def restore(self, state: Any, step: int | None = None) -> Any:
        """The newest checkpoint (or that of `step`), in the structure and shapes of `state`: a `TrainState` of arrays,
        or of their jax.ShapeDtypeStruct. Of a tuple with some of its fields, those alone are read. Each array lies
        where that of `state` does, whatever devices it was saved on.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise self._nothing()
        target = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in by_name(state).items()}
        fields = {_field(name) for name in target}
        path = self.folder / str(step)
        try:
            # Compared first: the library would leave half of its reads behind, and name the tree in full.
            metadata = {
                name: leaf for name, leaf in self._manager.item_metadata(step).tree.items() if _field(name) in fields
            }
            file_names = {without_value(name): name for name in metadata}  # older files have more of a name
            found = {
                name: jax.ShapeDtypeStruct(metadata[there].shape, metadata[there].dtype)
                for name, there in file_names.items()
            }
            stored = None
            if found == target:
                arguments = self._orbax.args.PyTreeRestore(
                    item={file_names[name]: leaf for name, leaf in target.items()},
                    restore_args={file_names[name]: self._restore_args(leaf) for name, leaf in by_name(state).items()},
                    partial_restore=True,
                )
                stored = self._manager.restore(step, args=arguments)
        except Exception as error:  # a damaged file is reported as a bare Exception
            raise CheckpointError(
                f"{path} is damaged ({_reason(error)}): remove it to fall back to an older checkpoint, or train again"
            ) from error
        if stored is None:
            name = next(name for name in sorted(found | target) if found.get(name) != target.get(name))
            raise CheckpointError(
                f"{path} is not a checkpoint of the model that config.json describes ({name} is {_shape(found, name)} "
                f"there and {_shape(target, name)} here): restore the config.json that it was trained with"
            )
        arrays = (
            stored[file_names[name]] for name in target
        )  # those with a place are there already, on other processes too
        placed = [array if isinstance(array, jax.Array) else jax.device_put(array) for array in arrays]
        return jax.tree.unflatten(jax.tree.structure(state), placed)

    def _restore_args(self, leaf: Any) -> Any:
        """Returns how an array is restored: onto the devices of `leaf`, if any, each of which reads its share."""
        if (sharding := getattr(leaf, "sharding", None)) is None:
            return self._orbax.RestoreArgs(restore_type=np.ndarray)
        return self._orbax.ArrayRestoreArgs(sharding=sharding)

    def _nothing(self) -> CheckpointError:
        return CheckpointError(f"{self.folder} holds no checkpoint: train first (train.py --workdir=...)")

    def _write_error(self, step: int | None, error: Exception) -> CheckpointError:
        latest = self.latest_step()
        again = "starts from the beginning" if latest is None else f"resumes from step {latest}"
        return CheckpointError(
            f"could not write checkpoint {step} to {self.folder} ({_reason(error)}): free disk space and run the same "
            f"command again; it {again}"
        )


class _Trained(NamedTuple):
    """The fields of a `TrainState` that recognition needs: a quarter of its bytes."""

    step: Any
    statistics: Any
    average: Any


def load_model(
    workdir: str | pathlib.Path, execution: str | None = None
) -> tuple[Config, ConformerCTC, Tokenizer, int]:
    """The averaged model of a work directory with its configuration, tokenizer and step, ready for inference.

    A directory that holds weights.npz (`save_weights`), such as those of models/, needs no checkpoints.

    Args:
        execution: layout to run it in, whatever it was trained in (`model.execution`); None = that one.
    """
    workdir = pathlib.Path(workdir)
    config = Config.from_json(workdir / "config.json")
    # The implementation of norms and attention was a choice for the machine that trained.
    config = config.replace({"model.execution": execution or config.model.execution, "model.kernels": ""})
    tokenizer = load_tokenizer(workdir, config.text.normalise)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise CheckpointError(
            f"{workdir}: the tokenizer has {tokenizer.vocab_size} units, the model {config.model.vocab_size}: "
            "restore the tokenizer that it was trained with"
        )
    # Shapes alone: initialising a model only to replace it would take most of a script's start.
    model = nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0)))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    shapes = _Trained(jax.ShapeDtypeStruct((), jnp.int32), statistics, params)
    released = (workdir / WEIGHTS_FILE).exists()
    trained = (
        _read_weights(workdir / WEIGHTS_FILE, shapes)
        if released
        else Checkpoints(workdir, create=False).restore(shapes)
    )
    return config, nnx.merge(graphdef, trained.average, trained.statistics), tokenizer, int(trained.step)


def save_weights(workdir: str | pathlib.Path, model: ConformerCTC, step: int) -> None:
    """Writes what recognition needs of a model as one file, in the place of checkpoints (see `load_model`)."""
    _, params, statistics = nnx.split(model, nnx.Param, ...)
    leaves = by_name(_Trained(np.int32(step), statistics, params))
    _write(workdir, {name: np.asarray(leaf) for name, leaf in leaves.items()})


def save_arrays(workdir: str | pathlib.Path, config: Config, arrays: Mapping[str, np.ndarray]) -> None:
    """The same from parameters and statistics that another program trained, by their names in `ConformerCTC`.

    Raises CheckpointError unless they are, in number and shape, those of the model that `config` describes.
    """
    model = nnx.eval_shape(lambda: ConformerCTC(config, rngs=nnx.Rngs(0)))
    _, params, statistics = nnx.split(model, nnx.Param, ...)
    shapes = by_name(_Trained(jax.ShapeDtypeStruct((), jnp.int32), statistics, params))
    named = {name: name.partition(".")[2] for name in shapes if name != "step"}
    if wrong := set(named.values()) ^ set(arrays):
        raise CheckpointError(f"{', '.join(sorted(wrong))}: not both in the model and among the arrays")
    for name, own in named.items():
        if arrays[own].shape != shapes[name].shape:
            raise CheckpointError(f"{own} is {list(arrays[own].shape)}, the model has {list(shapes[name].shape)}")
    _write(workdir, {"step": np.int32(0)} | {name: np.float32(arrays[own]) for name, own in named.items()})


def _write(workdir: str | pathlib.Path, arrays: dict[str, Any]) -> None:
    with system.replacing(pathlib.Path(workdir) / WEIGHTS_FILE) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _read_weights(path: pathlib.Path, shapes: _Trained) -> _Trained:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {without_value(name): array for name, array in stored.items()}
        arrays = {name: arrays[name] for name in by_name(shapes)}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}): correct its permissions") from None
    except Exception as error:  # zip, zlib and NumPy each have their own for a byte that is not right
        raise CheckpointError(f"{path} is damaged ({_reason(error) or 'it is empty'}): restore it") from None
    for name, leaf in by_name(shapes).items():
        if (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype):
            raise CheckpointError(f"{path} does not hold the model that config.json describes ({name}): restore both")
    # `jnp.asarray` would compile a program for each shape.
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.device_put([arrays[name] for name in by_name(shapes)]))


def _field(name: str) -> str:
    return name.partition(".")[0]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _shape(leaves: dict[str, jax.ShapeDtypeStruct], name: str) -> str:
    return f"{leaves[name].dtype}{list(leaves[name].shape)}" if name in leaves else "absent"
