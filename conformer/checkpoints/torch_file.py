"""Files of torch.save, read without torch: a zip archive of a pickle and of raw storages.

A pickle is a program. This reader knows tensors, ordered dictionaries and plain values; every other name that the
program asks for is refused, and nothing is imported or called for it.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from conformer.checkpoints.tensors import ConversionError, Stored

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how such files start
DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(file: Any, origin: str) -> Mapping[str, Stored]:
    """The tensors of a state dictionary, by name; each is read from `file` when it is asked for.

    Raises ConversionError for a file that is not one of torch.save since version 1.6, or asks for more than tensors.
    """
    try:
        archive = zipfile.ZipFile(file)
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ConversionError(f"{origin} holds {len(pickles)} pickles of torch.save, not one: name a checkpoint")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ConversionError(f"{origin} was written on a big-endian machine: save it again on another")
        with archive.open(pickles[0]) as program:
            state = _Unpickler(program, origin).load()
    except ConversionError:
        raise
    except zipfile.BadZipFile as error:
        file.seek(0)
        start = file.read(len(ZIP))
        if start.startswith(PICKLE):
            raise ConversionError(
                f"{origin} is no zip archive, as torch.save writes since version 1.6, but a pickle: load it in torch "
                "with weights_only=True and save it again"
            ) from None
        state = f"is cut off or damaged ({error})" if start == ZIP else "is no zip archive as torch.save writes"
        raise ConversionError(f"{origin} {state}: fetch it again") from None
    except Exception as error:  # a damaged pickle raises whatever it happens to
        raise ConversionError(f"{origin} is damaged ({type(error).__name__}: {error}): fetch it again") from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, _Tensor) for value in state.values()):
        raise ConversionError(f"{origin} holds no dictionary of tensors alone: save the model's state_dict()")
    return {
        name: Stored(tensor.shape, tensor.storage.dtype, _reader(archive, folder, tensor, origin))
        for name, tensor in state.items()
    }


def _reader(archive: zipfile.ZipFile, folder: str, tensor: _Tensor, origin: str):
    def read() -> np.ndarray:
        storage = tensor.storage
        try:
            values = np.frombuffer(archive.read(f"{folder}data/{storage.key}"), storage.dtype)
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ConversionError(f"{origin} is damaged (storage {storage.key}: {error}): fetch it again") from None
        steps = zip(tensor.shape, tensor.strides, strict=True)
        last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
        whole = all(size > 0 for size in tensor.shape)
        if min((tensor.offset, *tensor.strides, *tensor.shape)) < 0 or (whole and last >= len(values)):
            raise ConversionError(
                f"{origin} is damaged (a tensor reaches beyond storage {storage.key}): fetch it again"
            )
        if math.prod(tensor.shape) > len(values):
            raise ConversionError(
                f"{origin}: a tensor repeats the elements of storage {storage.key}: save it unexpanded"
            )
        strides = tuple(stride * values.itemsize for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides)

    return read


class _Unpickler(pickle.Unpickler):
    """Reads the pickle: its tensors become descriptions, whose data is read later."""

    def __init__(self, file: Any, origin: str):
        super().__init__(file)
        self._origin = origin

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in DTYPES:
            return _Marker(name)
        raise ConversionError(
            f"{self._origin} asks for {module}.{name}, which weights do not need and which could run code: do not load "
            "it elsewhere either; ask its author for the state_dict() alone, or safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, marker, key, _, size = pid
        if kind != "storage" or not isinstance(marker, _Marker):
            raise ConversionError(
                f"{self._origin} refers to {kind!r}, which is no storage: save the state_dict() alone"
            )
        return _Storage(np.dtype(DTYPES[marker]), str(key), int(size))


class _Marker(str):
    """The name of a kind of storage."""


def _rebuild_tensor(
    storage: _Storage,
    offset: int,
    shape: tuple,
    strides: tuple,
    _grad: Any = None,
    _hooks: Any = None,
    flags: Any = None,
) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    if flags:  # that values are to be negated, say
        raise ValueError(f"a tensor with {flags}, which is no plain one")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data: _Tensor, *_: Any) -> _Tensor:
    return data
