"""C sources for firmware: the flatbuffer as an array, and the constants of the front end and of the interface."""

import pathlib

import numpy as np

from conformer.artefacts import host
from conformer.artefacts.geometry import Geometry
from conformer.artefacts.micro import Tensor
from conformer.config import FeatureConfig

FILTERS = "// Filter m reads FILTER_SIZE[m] bins of the power spectrum from FILTER_START[m] on; weights in a row."
COMMENTS = {
    "INT16_SCALE": "  // of samples in [-1, 1)",
    "PREEMPHASIS": "  // after a frame's mean is taken off",
    "LOG_FLOOR": "  // least energy before the logarithm",
}


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
    """Lines of C with what a host of any artefact needs (`host.front_end`). Names begin with `prefix`."""
    lines = []
    for name, value in host.front_end(features, geometry).items():
        if name == "FILTER_START":
            lines += ["", FILTERS]
        if isinstance(value, np.ndarray):
            lines.append(_array("int16_t" if value.dtype.kind == "i" else "float", prefix + name, value))
        elif isinstance(value, float):
            lines.append(f"#define {prefix}{name} {value!r}f{COMMENTS[name]}")
        else:
            lines.append(f"enum {{ {prefix}{name} = {value} }};")
    return [*lines, ""]


def _array(kind: str, name: str, values) -> str:
    texts = [f"{value:.9g}" if kind == "float" else str(value) for value in values]
    texts = [f"{text}f" if "." in text or "e" in text else f"{text}.f" if kind == "float" else text for text in texts]
    rows = [", ".join(texts[start : start + 12]) for start in range(0, len(texts), 12)]
    return f"static const {kind} {name}[{len(texts)}] = {{\n    " + ",\n    ".join(rows) + "};"
