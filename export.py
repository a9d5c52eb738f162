"""Exports a trained recogniser to another runtime than JAX: its streaming step or, with --whole, for whole recordings.

  python export.py --workdir=runs/words --format=onnx --numerics=int8 --out=exported
  python export.py --workdir=runs/words_micro --format=tflite-micro --out=exported/micro
  python export.py --workdir=runs/parakeet --format=onnx --whole --max-seconds=30 --out=exported/whole

Exports of one model and chunk size can share a folder. Beside each lies its card, and README.md says how to run them;
parity.py compares them with JAX. Needs the extra: pip install -c requirements.lock -e '.[export]'.
docs/deployment.md has more.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import pathlib
import sys

from absl import flags

from conformer import runtime
from conformer.artefacts.formats import FORMATS
from conformer.command import run_command
from conformer.export.pipeline import export, release
from conformer.system import check_folder

NUMERICS = sorted({numerics for format in FORMATS.values() for numerics in format.numerics})

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
FORMAT = flags.DEFINE_enum("format", None, list(FORMATS), "Runtime to export for.", required=True)
NUMERICS_FLAG = flags.DEFINE_enum("numerics", None, NUMERICS, "Numbers to compute with; default: the format's first.")
CHUNK_SIZE = flags.DEFINE_integer("chunk-size", 16, "Encoder frames recognised at a time.")
NUM_LEFT_CHUNKS = flags.DEFINE_integer("num-left-chunks", 4, "Chunks of left context.")
LOOK_AHEAD = flags.DEFINE_integer("look-ahead", 0, "Encoder frames after a chunk that it sees.")
WHOLE = flags.DEFINE_bool("whole", False, "Take whole recordings, without chunks; formats: onnx, litert, jax.")
MAX_SECONDS = flags.DEFINE_float("max-seconds", 30.0, "Longest recording with --whole; short ones take as much time.")
WEIGHTS = flags.DEFINE_bool("weights", False, "Also write the weights: the folder then serves as --workdir, as well.")
OUT = flags.DEFINE_string("out", None, "Folder to write to; created if it does not exist.", required=True)


def main(_) -> None:
    runtime.set_up()
    out = pathlib.Path(OUT.value)
    try:
        check_folder(out)
        check_flags()
        card = export(
            pathlib.Path(WORKDIR.value),
            FORMAT.value,
            NUMERICS_FLAG.value,
            CHUNK_SIZE.value,
            NUM_LEFT_CHUNKS.value,
            out,
            MAX_SECONDS.value if WHOLE.value else None,
            LOOK_AHEAD.value,
        )
        if WEIGHTS.value:
            release(pathlib.Path(WORKDIR.value), out)
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"export.py: {error}")
    print(
        f"{out / card.file}: {card.file_bytes / 1e6:.2f} MB, largest difference of a log-probability from JAX float32 "
        f"{card.check:.1e}; {out / 'README.md'} says how to run it"
    )


def check_flags() -> None:
    """Raises ValueError for flags of the other kind of artefact."""
    unfit = ("chunk-size", "num-left-chunks", "look-ahead") if WHOLE.value else ("max-seconds",)
    for name in unfit:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name} goes {'not' if WHOLE.value else 'only'} with --whole: leave it out")


if __name__ == "__main__":
    run_command(main)
