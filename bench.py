"""Measures this project beside its peers on this machine.

    python bench.py training [--steps=5] [--compute=float32] [--json=FILE]

training    a full training step of a 10 M parameter model, JAX and eager PyTorch in alternation (about 2 minutes on
            2 cores)

The peers run in an environment of their own, which `make peers` makes. Leave the machine otherwise idle.
"""

import sys

from absl import app, flags

from benchmarks import record, training
from benchmarks.peers import PeerError

_JSON = flags.DEFINE_string("json", None, "File that the record is written to: every time, device, versions, command.")
_STEPS = flags.DEFINE_integer("steps", 5, "training: steps in each block.", lower_bound=1)
_COMPUTE = flags.DEFINE_enum("compute", "float32", ["float32", "bfloat16"], "training: format of matrix products.")


def main(argv: list[str]) -> None:
    if argv[1:] != ["training"]:
        raise app.UsageError("name what to measure: training")
    try:
        result = training.run(_STEPS.value, _COMPUTE.value)
    except PeerError as error:
        sys.exit(f"bench.py: {error}")
    print(training.table(result))
    if _JSON.value:
        record.write(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)
