"""Copies of the golden checkpoints with other settings, tensors or files, written without their toolkits."""

import io
import json
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import yaml

from conformer.checkpoints.convert import read_checkpoint
from conformer.checkpoints.torch_file import read_torch

WENET, PARAKEET = "wenet_u2pp_conformer", "hf_parakeet_ctc"
CONFORMER, FASTCONFORMER = "nemo_conformer_ctc/model.nemo", "nemo_fastconformer_streaming/model.nemo"


def copied(golden, tmp_path, name):
    """A folder of wenet or transformers that may be changed."""
    folder = tmp_path / name
    folder.mkdir()
    for file in (golden / name).iterdir():
        if file.name != "golden.npz":
            shutil.copyfile(file, folder / file.name)
    return folder


def with_settings(golden, tmp_path, name, **changes):
    """A .nemo whose configuration has other values, by "section.key"."""
    path = tmp_path / "changed.nemo"
    with tarfile.open(golden / name) as old, tarfile.open(path, "w:gz") as new:
        for member in old.getmembers():
            file = old.extractfile(member)
            data = b"" if file is None else file.read()
            if member.name.endswith(".yaml"):
                values = yaml.safe_load(data)
                for key, value in changes.items():
                    section, _, option = key.partition("__")
                    values[section][option] = value
                data = yaml.safe_dump(values).encode()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return path


def with_tensors(path, change):
    """Rewrites a file of torch.save with other tensors: `change` gets their names and arrays."""
    with path.open("rb") as file:
        arrays = {name: np.asarray(stored.read()) for name, stored in read_torch(file, path.name).items()}
    change(arrays)
    program = io.BytesIO()
    with zipfile.ZipFile(path, "w") as archive:
        pickler = TorchPickler(program, protocol=2)
        pickler.dump({name: TorchTensor(name, array) for name, array in arrays.items()})
        archive.writestr("final/data.pkl", program.getvalue())
        for name, array in arrays.items():
            archive.writestr(f"final/data/{name}", np.ascontiguousarray(array, np.float32).tobytes())


class TorchTensor:
    """Pickled as torch pickles a tensor of float32."""

    def __init__(self, key, array, *rest):
        self.storage, self.shape, self.rest = TorchStorage((key, array.size)), array.shape, rest
        self.strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))

    def __reduce__(self):
        return TorchName("torch._utils", "_rebuild_tensor_v2"), (self.storage, 0, self.shape, self.strides, *self.rest)


class TorchStorage(tuple):
    """Key and number of elements."""


class TorchName:
    """A global of torch."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        """Does nothing: pickle takes only what can be called as the function of a reduction."""


class TorchPickler(pickle._Pickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Writes names of torch without torch."""

    def persistent_id(self, obj):
        if isinstance(obj, TorchStorage):
            return ("storage", TorchName("torch", "FloatStorage"), *obj[:1], "cpu", obj[1])
        return None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, TorchName):
            self.write(  # pyright: ignore[reportAttributeAccessIssue]
                pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode()
            )
        else:
            super().save(obj, save_persistent_id)  # pyright: ignore[reportAttributeAccessIssue]


def wenet_with(golden, tmp_path, change, **settings):
    """The model of a folder of WeNet with other options of its encoder ("encoder_conf" alone) and tensors."""
    folder = copied(golden, tmp_path, WENET)
    values = yaml.safe_load((folder / "train.yaml").read_text())
    values["encoder_conf"] |= settings
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    with_tensors(folder / "final.pt", change)
    return read_checkpoint(folder)


def parakeet_with(golden, tmp_path, file, change):
    """The folder of Parakeet with another JSON file: `change` gets its values."""
    folder = copied(golden, tmp_path, PARAKEET)
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))
    return folder
