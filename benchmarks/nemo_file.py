"""Writes a `.nemo` file of random weights: a streaming FastConformer with a CTC head, as NVIDIA publishes them."""

import io
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import yaml

from conformer.checkpoints.names import NEMO
from conformer.checkpoints.nemo import SETTINGS, WEIGHTS
from conformer.checkpoints.units import plain_model
from conformer.tokenizer import SPACE_SYMBOL

TOKENIZER = "tokenizer.model"
MEL_BINS = 80
LETTERS = "etaoinshrdlu"


class Sizes(NamedTuple):
    """The sizes of the model; the defaults are those of `stt_en_fastconformer_hybrid_large_streaming_multi`."""

    dim: int = 512
    layers: int = 17
    heads: int = 8
    taps: int = 9
    expansion: int = 4
    channels: int = 256  # of the front end
    units: int = 1024  # without the blank
    contexts: tuple[tuple[int, int], ...] = ((70, 13), (70, 6), (70, 1), (70, 0))  # frames to the left and right


def write_nemo(path: Path, sizes: Sizes, seed: int = 0) -> None:
    """Writes the file: configuration, sentencepiece model and weights, those of torch.save without torch."""
    pieces = [SPACE_SYMBOL, *LETTERS, *(f"{SPACE_SYMBOL}{a}{b}" for a in LETTERS for b in LETTERS)]
    pieces += [f"{a}{b}{c}" for a in LETTERS for b in LETTERS for c in LETTERS]
    model = plain_model({piece: -1.0 for piece in pieces[: sizes.units]}, "unigram")
    with tarfile.open(path, "w") as archive, tempfile.TemporaryFile() as weights:
        _write_torch(weights, _shapes(sizes), seed)
        files = {SETTINGS: yaml.safe_dump(_settings(sizes)).encode(), TOKENIZER: model.SerializeToString()}
        for name, file in {**{name: io.BytesIO(data) for name, data in files.items()}, WEIGHTS: weights}.items():
            member = tarfile.TarInfo(name)
            member.size = file.seek(0, io.SEEK_END)
            file.seek(0)
            archive.addfile(member, file)


def _settings(sizes: Sizes) -> dict[str, Any]:
    encoder = {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": MEL_BINS,
        "n_layers": sizes.layers,
        "d_model": sizes.dim,
        "n_heads": sizes.heads,
        "ff_expansion_factor": sizes.expansion,
        "conv_kernel_size": sizes.taps,
        "conv_norm_type": "layer_norm",
        "conv_context_size": "causal",
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": sizes.channels,
        "causal_downsampling": True,
        "att_context_style": "chunked_limited",
        "att_context_size": [list(context) for context in sizes.contexts],
        "xscaling": False,
    }
    return {
        "target": "nemo.collections.asr.models.EncDecHybridRNNTCTCBPEModel",
        "preprocessor": {"normalize": "NA", "window_size": 0.025, "features": MEL_BINS, "n_fft": 512},
        "tokenizer": {"type": "bpe", "model_path": f"nemo:{TOKENIZER}"},
        "encoder": encoder,
        "aux_ctc": {"decoder": {"_target_": "nemo.collections.asr.modules.ConvASRDecoder"}},
    }


def _shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors that recognition by CTC needs, by name."""
    dim, channels, shapes = sizes.dim, sizes.channels, {}

    def add(name: str, *shape: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    convolutions = {0: (1, 3), 2: (1, 3), 3: (channels, 1), 5: (1, 3), 6: (channels, 1)}
    for place, (inputs, taps) in convolutions.items():
        add(f"{NEMO.convolutions}.{place}", channels, inputs, taps, taps)
    bins = MEL_BINS
    for _ in range(3):
        bins = bins // 2 + 1
    add(NEMO.projection, dim, channels * bins)
    for layer in range(sizes.layers):
        prefix = f"{NEMO.blocks}.{layer}."
        for norm, expand, contract in NEMO.feed_forwards:
            add(prefix + norm, dim)
            add(prefix + expand, sizes.expansion * dim, dim)
            add(prefix + contract, dim, sizes.expansion * dim)
        for name in (NEMO.query, NEMO.key, NEMO.value, NEMO.output):
            add(prefix + name, dim, dim)
        shapes[f"{prefix}{NEMO.position}.weight"] = (dim, dim)
        shapes.update({prefix + name: (sizes.heads, dim // sizes.heads) for name in (NEMO.u, NEMO.v)})
        add(prefix + NEMO.gate, 2 * dim, dim, 1)
        add(prefix + NEMO.depthwise, dim, 1, sizes.taps)
        add(prefix + NEMO.pointwise, dim, dim, 1)
        for name in (NEMO.attention_norm, NEMO.convolution_norm, NEMO.middle_norm, NEMO.norm):
            add(prefix + name, dim)
    add(f"ctc_{NEMO.head}", sizes.units + 1, dim, 1)
    return shapes


def _write_torch(file: IO[bytes], shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """A state dictionary as torch.save writes it: a zip archive of a pickle and of a storage for each tensor."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights/data.pkl", b"".join(_program(shapes)))
        archive.writestr("weights/byteorder", b"little")
        for index, (name, shape) in enumerate(shapes.items()):
            # Maps that keep the size of what they map, scales near one.
            spread = max(int(np.prod(shape[1:])), 1) ** -0.5 if len(shape) > 1 else 0.1
            values = np.float32(spread) * rng.standard_normal(shape, np.float32)
            scale = len(shape) == 1 and name.endswith("weight")
            archive.writestr(f"weights/data/{index}", (values + np.float32(scale)).data)


def _program(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[bytes]:
    """The pickle: an ordered dictionary of tensors that lie in storages of their own."""
    empty = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE

    def numbers(values: tuple[int, ...]) -> bytes:
        return pickle.MARK + b"".join(pickle.BININT + value.to_bytes(4, "little") for value in values) + pickle.TUPLE

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + len(value.encode()).to_bytes(4, "little") + value.encode()

    yield pickle.PROTO + b"\x02" + empty + pickle.MARK
    for index, (name, shape) in enumerate(shapes.items()):
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        size = pickle.BININT + int(np.prod(shape)).to_bytes(4, "little")
        yield text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK
        yield pickle.MARK + text("storage") + b"ctorch\nFloatStorage\n" + text(str(index)) + text("cpu") + size
        yield pickle.TUPLE + pickle.BINPERSID + pickle.BININT + bytes(4) + numbers(shape) + numbers(strides)
        yield pickle.NEWFALSE + empty + pickle.TUPLE + pickle.REDUCE
    yield pickle.SETITEMS + pickle.STOP
