"""Builds recognise.c for an ONNX artefact: writes its constants, model.h, and compiles both into OUT/recognise.

  python examples/device/build.py models/words_micro/onnx_int8.onnx runs/device
  runs/device/recognise models/words_micro/onnx_int8.onnx speech.wav

CC is the compiler (default: cc), CFLAGS adds to its flags, and ORT_LIBRARY names ONNX Runtime's shared library for the
machine it compiles for; default: the one of the Python package.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys

from conformer.artefacts.formats import ExportError
from conformer.artefacts.host import card_for
from conformer.artefacts.onnx import cache_shapes
from conformer.export.c_sources import front_end
from conformer.tokenizer import load_tokenizer

SOURCE = pathlib.Path(__file__).parent / "recognise.c"


def constants(path: pathlib.Path) -> str:
    """The text of model.h: sizes, filterbank, shapes of the state, tokens.

    Raises ExportError for what recognise.c cannot run.
    """
    card = card_for(SOURCE.name, path)
    geometry = card.geometry
    shapes = {f"{name.upper()}_SHAPE": shape for name, shape in cache_shapes(geometry).items()}
    tokens = load_tokenizer(path.parent, card.normalise).symbols
    lines = [
        f"// {path.name}: constants of its front end and of its interface.",
        "#pragma once",
        "#include <stdint.h>",
        "",
        *front_end(card.features, geometry),
        *(f"static const int64_t {name}[4] = {{{', '.join(map(str, shape))}}};" for name, shape in shapes.items()),
        f"static const char *const TOKENS[{len(tokens)}] = {{",
        *(f"    {json.dumps(token, ensure_ascii=False)}," for token in tokens),
        "};",
    ]
    return "\n".join(lines) + "\n"


def build(artefact: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The program. Raises ExportError where it cannot be compiled."""
    header, program = constants(artefact), out / "recognise"
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.h").write_text(header)
    library = pathlib.Path(os.environ.get("ORT_LIBRARY") or _packaged_library()).absolute()
    for name in ("libonnxruntime.so.1", "libonnxruntime.so"):  # what the program looks for, and what -l does
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(library)
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", *shlex.split(os.environ.get("CFLAGS", ""))]
    places = [f"-I{out}", f"-L{out}", f"-Wl,-rpath,{out.absolute()}", "-Wl,--allow-shlib-undefined"]
    command = [os.environ.get("CC", "cc"), *flags, *places, str(SOURCE), "-o", str(program), "-lonnxruntime", "-lm"]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ExportError(f"{command[0]}: {error}: name a C compiler in CC") from None
    return program


def _packaged_library() -> pathlib.Path:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    found = sorted(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not found:
        raise ExportError("this onnxruntime package has no library for C: name one in ORT_LIBRARY")
    return found[-1]


if __name__ == "__main__":
    try:
        print(build(*map(pathlib.Path, sys.argv[1:3])))
    except (ExportError, TypeError) as error:
        sys.exit(f"build.py: {error}" if isinstance(error, ExportError) else __doc__)
