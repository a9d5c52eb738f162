"""Files of safetensors: a header in JSON, then the tensors one behind the other. Nothing in them can run."""

import json
import math
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from conformer.checkpoints.tensors import ConversionError, Stored

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: pathlib.Path) -> Mapping[str, Stored]:
    """The tensors of a file by name; each is read when it is asked for. Raises ConversionError for a damaged one."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _stored(path, 8 + length, size, **entry) for name, entry in header.items()}
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror}): it belongs to the checkpoint") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConversionError(f"{path} is damaged ({error}): fetch it again") from None


def _stored(path: pathlib.Path, start: int, size: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    kind = np.dtype(DTYPES[dtype])
    first, last = data_offsets
    if not 0 <= first <= last <= size - start or last - first != math.prod(shape) * kind.itemsize:
        raise ValueError("a tensor does not fit its place")

    def read() -> np.ndarray:
        return np.fromfile(path, kind, math.prod(shape), offset=start + first).reshape(shape)

    return Stored(tuple(shape), kind, read)
