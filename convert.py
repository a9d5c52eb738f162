"""Makes a work directory of a public checkpoint, for eval.py, transcribe.py, export.py and train.py.

  python convert.py stt_en_conformer_ctc_small.nemo --out=runs/nemo_small
  python convert.py 20210610_u2pp_conformer_exp --out=runs/wenet
  python convert.py parakeet-ctc-0.6b --out=runs/parakeet

Takes a .nemo file, a folder of WeNet or a folder of transformers with safetensors; needs neither their libraries nor
torch. Writes nothing if a tensor is missing or left over. docs/checkpoints.md says what is supported.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import pathlib
import sys

from absl import flags

from conformer import runtime
from conformer.checkpoints.convert import read_checkpoint
from conformer.command import run_command
from conformer.system import check_folder
from conformer.training.checkpoint import WEIGHTS_FILE

OUT = flags.DEFINE_string("out", None, "Folder to write to; created if it does not exist.", required=True)


def main(argv: list[str]) -> None:
    runtime.set_up()
    out = pathlib.Path(OUT.value)
    try:
        if len(argv) != 2:
            raise ValueError("name one checkpoint: convert.py CHECKPOINT --out=DIR")
        check_folder(out)
        if there := [name for name in ("checkpoints", "config.json", WEIGHTS_FILE) if (out / name).exists()]:
            raise ValueError(f"{out} holds a model or a run already ({there[0]}): name another --out, or remove it")
        imported = read_checkpoint(pathlib.Path(argv[1]))
        imported.save(out)
    except (ValueError, OSError) as error:  # ValueError: what every error of bad input is; OSError: a full disk, say
        sys.exit(f"convert.py: {error}")
    config, count = imported.config, sum(array.size for array in imported.parameters.values())
    reason = config.not_streaming
    print(
        f"{out}: a {imported.format} model of {count / 1e6:.1f} M parameters and {config.model.vocab_size} units; "
        + (f"it recognises whole utterances alone: {reason}" if reason else "it streams")
    )


if __name__ == "__main__":
    run_command(main)
