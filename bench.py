"""Measures this project beside its peers on this machine.

    python bench.py training [--steps=5] [--compute=float32] [--json=FILE]
    python bench.py streaming [--chunks=40] [--json=FILE]
    python bench.py numerics [--plots=FOLDER] [--json=FILE]

training    a full training step of a 10 M parameter model, JAX and eager PyTorch in alternation (about 2 minutes on
            2 cores)
streaming   a chunk of one stream of a 20 M parameter model on one core: JAX with float32, bfloat16 and int8 weights,
            PyTorch eager and compiled, ONNX Runtime; and the bound that the core's own rates set (a few minutes, most
            of them compilation)
numerics    LayerNorm in emulated float16: failures and errors by pre-normaliser, width, distribution, amplitude, format
            and order of summation (2 minutes, most of them compilation); nothing is timed

PyTorch runs in an environment of its own, which `make peers` makes; ONNX Runtime needs the extra `export`. What is
missing, `streaming` does without, and says so. Leave the machine otherwise idle.
"""

import sys

from absl import app, flags

from benchmarks import numerics, numerics_plots, record, streaming, training
from benchmarks.peers import PeerError
from benchmarks.streaming import DisagreementError

_JSON = flags.DEFINE_string("json", None, "File that the record is written to: every time, device, versions, command.")
_STEPS = flags.DEFINE_integer("steps", 5, "training: steps in each block.", lower_bound=1)
_COMPUTE = flags.DEFINE_enum("compute", "float32", ["float32", "bfloat16"], "training: format of matrix products.")
_CHUNKS = flags.DEFINE_integer("chunks", 40, "streaming: chunks in each block.", lower_bound=1)
_PLOTS = flags.DEFINE_string("plots", None, "numerics: folder that plots are written to (needs matplotlib).")


def main(argv: list[str]) -> None:
    try:
        match argv[1:]:
            case ["training"]:
                result = training.run(_STEPS.value, _COMPUTE.value)
                print(training.table(result))
            case ["streaming"]:
                result = streaming.run(_CHUNKS.value)
                print(streaming.table(result))
            case ["numerics"]:
                numerics_plots.check(_PLOTS.value)
                result = numerics.run()
                print(numerics.table(result))
            case _:
                raise app.UsageError("name what to measure: training, streaming or numerics")
    except (PeerError, DisagreementError, numerics_plots.MissingError) as error:
        sys.exit(f"bench.py: {error}")
    if _JSON.value:
        record.write(_JSON.value, result)
    if _PLOTS.value:
        numerics_plots.draw(result, _PLOTS.value)


if __name__ == "__main__":
    app.run(main)
