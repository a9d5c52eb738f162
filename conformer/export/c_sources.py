"""C sources for firmware: the flatbuffer as an array, and the constants of the front end and of the interface."""

import pathlib

import numpy as np

from conformer.artefacts.geometry import Geometry
from conformer.artefacts.micro import Tensor
from conformer.audio import INT16_SCALE
from conformer.config import FeatureConfig
from conformer.filterbank import LOG_FLOOR, plan_of


def write(
    path: pathlib.Path,
    flatbuffer: bytes,
    features: FeatureConfig,
    geometry: Geometry,
    tensors: dict[str, Tensor],
    arena_bytes: int,
    mask: float,
) -> None:
    """Writes NAME.h and NAME.cc beside the flatbuffer NAME.tflite."""
    name = path.stem
    data = np.frombuffer(flatbuffer, np.uint8)
    rows = [",".join(map(str, data[start : start + 32])) for start in range(0, len(data), 32)]
    path.with_suffix(".cc").write_text(
        f'#include "{name}.h"\n\nalignas(16) const unsigned char {name}_model[{len(data)}] = {{\n'
        + ",\n".join(rows)
        + "};\n"
    )
    constants = plan_of(features)
    lengths = {
        "SAMPLE_RATE": features.sample_rate,
        "NUM_MEL_BINS": features.num_mel_bins,
        "FRAME_SAMPLES": constants.window_length,
        "SHIFT_SAMPLES": constants.shift,
        "LEFT_SAMPLES": constants.left,  # of the first frame before the audio, which is reflected there
        "FFT_SIZE": constants.fft_size,
        "WINDOW_FRAMES": geometry.window,
        "WINDOW_SHIFT_FRAMES": geometry.shift,
        "CHUNK_SIZE": geometry.chunk_size,
        "LEFT_CONTEXT": geometry.left,
        "VOCAB_SIZE": geometry.vocab_size,
        "ARENA_BYTES": arena_bytes,
        "NUM_STATES": sum(tensor_name.startswith("next_") for tensor_name in tensors),
    }
    filters = [np.flatnonzero(column) for column in constants.filters.T]
    weights = np.concatenate([constants.filters[rows, mel] for mel, rows in enumerate(filters)])
    prefix = name.upper()
    lines = [
        "// Constants of the streaming recogniser: front end (a log-mel filterbank as Kaldi's) and interface.",
        "#pragma once",
        "#include <cstdint>",
        "",
        f"extern const unsigned char {name}_model[{len(data)}];",
        "",
        *(f"constexpr int {prefix}_{key} = {value};" for key, value in lengths.items()),
        f"constexpr float {prefix}_INT16_SCALE = {INT16_SCALE}f;  // of samples in [-1, 1)",
        f"constexpr float {prefix}_PREEMPHASIS = {features.preemphasis}f;  // after the mean of a frame is taken off",
        f"constexpr float {prefix}_LOG_FLOOR = {LOG_FLOOR!r}f;  // least energy before the logarithm",
        f"constexpr float {prefix}_MASKED = {mask}f;  // mask of a key that is not valid yet; 0 for others",
        "",
        "// An input or output by its position: real value = scale * (integer - zero_point); scale 0 = float32.",
        "// States go back in as they come out; a new stream begins with their zero points.",
        f"struct {prefix}_Tensor {{ int position; float scale; int zero_point; }};",
    ]
    for tensor_name, tensor in tensors.items():
        values = f"{{{tensor.position}, {tensor.scale!r}f, {tensor.zero_point}}}"
        lines.append(f"constexpr {prefix}_Tensor {prefix}_{tensor_name} = {values};  // {tensor.dtype}")
    lines += [
        "",
        "// Filter m reads FILTER_SIZE[m] bins of the power spectrum from FILTER_START[m] on; weights in a row.",
        _array("int16_t", f"{prefix}_FILTER_START", [int(rows[0]) for rows in filters]),
        _array("int16_t", f"{prefix}_FILTER_SIZE", [len(rows) for rows in filters]),
        _array("float", f"{prefix}_FILTER_WEIGHTS", weights),
        _array("float", f"{prefix}_ANALYSIS_WINDOW", constants.window),
    ]
    path.with_suffix(".h").write_text("\n".join(lines) + "\n")


def _array(kind: str, name: str, values) -> str:
    texts = [f"{value:.9g}" if kind == "float" else str(value) for value in values]
    texts = [f"{text}f" if "." in text or "e" in text else f"{text}.f" if kind == "float" else text for text in texts]
    rows = [", ".join(texts[start : start + 12]) for start in range(0, len(texts), 12)]
    return f"constexpr {kind} {name}[{len(texts)}] = {{\n    " + ",\n    ".join(rows) + "};"
