"""Language models in a compact file that is mapped into memory: nothing is parsed, and only what is asked for is read.

The file is one of safetensors: a header in JSON, then the arrays of `NgramModel`. A logarithm takes a byte: the range
of a model's is cut into 255 equal steps, so that it is off by half a step at most (about 0.04).
"""

import json
import pathlib
from typing import Any

import numpy as np

from conformer import system
from conformer.language.codes import Codes
from conformer.language.ngrams import NgramModel
from conformer.language.vocabulary import LanguageModelError, Vocabulary

SUFFIX = ".lm"
_FORMAT = "edge-conformer n-grams 1"
_TYPES = {"uint8": "U8", "uint16": "U16", "int32": "I32", "float32": "F32"}


def write_compact(model: NgramModel, path: str | pathlib.Path, about: dict[str, Any] | None = None) -> None:
    """Writes a model, and with it what else is to be known of it, as JSON holds it."""
    log_prob, backoff = (
        values if isinstance(values, Codes) else Codes.of(values) for values in (model.log_prob, model.backoff)
    )
    wide = np.int32 if len(model.vocabulary) > 1 << 16 else np.uint16
    arrays = {
        "starts": np.array(model.starts, np.int32),
        "begin": np.asarray(model.begin, np.int32),
        "word": model.word.astype(wide),
        "log_prob": log_prob.codes,
        "backoff": backoff.codes,
        "words": np.frombuffer("\n".join(model.words).encode(), np.uint8),
    }
    header: dict[str, Any] = {
        "__metadata__": {
            "format": _FORMAT,
            "ranges": json.dumps([log_prob.low, log_prob.high, backoff.low, backoff.high]),
            "about": json.dumps(about or {}),
        }
    }
    place = 0
    for name, values in arrays.items():
        header[name] = {
            "dtype": _TYPES[values.dtype.name],
            "shape": values.shape,
            "data_offsets": [place, place + values.nbytes],
        }
        place += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with system.replacing(pathlib.Path(path)) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in arrays.values():
            file.write(values.tobytes())


def read_compact(path: str | pathlib.Path) -> tuple[NgramModel, dict[str, Any]]:
    """A model that stays in its file, and what was written with it. Raises LanguageModelError for a damaged file."""
    types = {short: name for name, short in _TYPES.items()}
    try:
        file = np.asarray(np.memmap(path, np.uint8, "r"))  # a plain array of the same memory: each access costs less
        start = 8 + int.from_bytes(file[:8].tobytes(), "little")
        header = json.loads(file[8:start].tobytes())
        about = header.pop("__metadata__")
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r}")
        arrays = {}
        for name, entry in header.items():
            first, stop = (start + offset for offset in entry["data_offsets"])
            if stop > len(file):
                raise ValueError("it ends too early")
            arrays[name] = file[first:stop].view(types[entry["dtype"]])
        words = arrays["words"].tobytes().decode().split("\n")
        vocabulary = Vocabulary(words if words != [""] else [])
        starts = arrays["starts"].tolist()
        begin, word = arrays["begin"], arrays["word"]
        if (
            len(vocabulary) != starts[2] - starts[1]
            or (len(word), len(begin)) != (starts[-1], starts[-2] + 1)
            or (begin[0], begin[-1]) != (1, starts[-1])
            or (np.diff(begin) < 0).any()
            or word.max() >= len(vocabulary)
        ):
            raise ValueError("its parts do not fit together")
        low, high, least, most = json.loads(about["ranges"])
        model = NgramModel(
            vocabulary,
            starts,
            word,
            Codes(arrays["log_prob"], low, high),
            Codes(arrays["backoff"], least, most),
            begin,
        )
        return model, json.loads(about["about"])
    except OSError as error:
        raise LanguageModelError(f"{path} cannot be read ({error.strerror}): name a language model") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LanguageModelError(f"{path} is damaged ({error}): restore the file or write it again") from None


def is_compact(path: str | pathlib.Path) -> bool:
    """Returns whether a file begins like a compact model, whatever its name is."""
    try:
        with pathlib.Path(path).open("rb") as file:
            return _FORMAT.encode() in file.read(4096)
    except OSError:
        return False
