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
    prefix = f"{name.upper()}_"
    lines = [
        "// Constants of the streaming recogniser: front end and interface. C99 and C++.",
        "#pragma once",
        "#include <stdint.h>",
        "",
        f"extern const unsigned char {name}_model[{len(data)}];",
        "",
        *front_end(features, geometry, prefix),
        f"enum {{ {prefix}ARENA_BYTES = {arena_bytes} }};",
        f"enum {{ {prefix}NUM_STATES = {sum(tensor_name.startswith('next_') for tensor_name in tensors)} }};",
        f"#define {prefix}MASKED {mask}f  // mask of a key that is not valid yet; 0 for others",
        "",
        "// An input or output by its position: real value = scale * (integer - zero_point); scale 0 = float32.",
        "// States go back in as they come out; a new stream begins with their zero points.",
        f"typedef struct {{ int position; float scale; int zero_point; }} {prefix}Tensor;",
    ]
    for tensor_name, tensor in tensors.items():
        values = f"{{{tensor.position}, {tensor.scale!r}f, {tensor.zero_point}}}"
        lines.append(f"static const {prefix}Tensor {prefix}{tensor_name} = {values};  // {tensor.dtype}")
    path.with_suffix(".h").write_text("\n".join(lines) + "\n")


def front_end(features: FeatureConfig, geometry: Geometry, prefix: str = "") -> list[str]:
    """Lines of C with what a host of any artefact needs: sizes, and the constants of the log-mel filterbank.

    Names begin with `prefix`.
    """
    plan = plan_of(features)
    sizes = {
        "SAMPLE_RATE": features.sample_rate,
        "NUM_MEL_BINS": features.num_mel_bins,
        "FRAME_SAMPLES": plan.window_length,
        "SHIFT_SAMPLES": plan.shift,
        "LEFT_SAMPLES": plan.left,  # of the first frame before the audio, which is reflected there
        "TRAILING_SAMPLES": plan.trailing,  # of silence to add behind the audio
        "FFT_SIZE": plan.fft_size,
        "WINDOW_FRAMES": geometry.window,
        "WINDOW_SHIFT_FRAMES": geometry.shift,
        "SUBSAMPLING_FACTOR": geometry.subsampling_factor,
        "RIGHT_CONTEXT": geometry.right_context,
        "CHUNK_SIZE": geometry.chunk_size,
        "LEFT_CONTEXT": geometry.left,
        "VOCAB_SIZE": geometry.vocab_size,
    }
    filters = [np.flatnonzero(column) for column in plan.filters.T]
    weights = np.concatenate([plan.filters[rows, mel] for mel, rows in enumerate(filters)])
    return [
        *(f"enum {{ {prefix}{key} = {value} }};" for key, value in sizes.items()),
        f"#define {prefix}INT16_SCALE {INT16_SCALE}f  // of samples in [-1, 1)",
        f"#define {prefix}PREEMPHASIS {features.preemphasis}f  // after a frame's mean is taken off",
        f"#define {prefix}LOG_FLOOR {LOG_FLOOR!r}f  // least energy before the logarithm",
        "",
        "// Filter m reads FILTER_SIZE[m] bins of the power spectrum from FILTER_START[m] on; weights in a row.",
        _array("int16_t", f"{prefix}FILTER_START", [int(rows[0]) for rows in filters]),
        _array("int16_t", f"{prefix}FILTER_SIZE", [len(rows) for rows in filters]),
        _array("float", f"{prefix}FILTER_WEIGHTS", weights),
        _array("float", f"{prefix}ANALYSIS_WINDOW", plan.window),
        "",
    ]


def _array(kind: str, name: str, values) -> str:
    texts = [f"{value:.9g}" if kind == "float" else str(value) for value in values]
    texts = [f"{text}f" if "." in text or "e" in text else f"{text}.f" if kind == "float" else text for text in texts]
    rows = [", ".join(texts[start : start + 12]) for start in range(0, len(texts), 12)]
    return f"static const {kind} {name}[{len(texts)}] = {{\n    " + ",\n    ".join(rows) + "};"
