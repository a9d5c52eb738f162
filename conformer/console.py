"""The console command of an installed wheel: `edge-conformer train --config=...` runs train.py, and so on."""

import pathlib
import runpy
import sys

from conformer import interrupts

_HERE = pathlib.Path(__file__).parent
SCRIPTS = _HERE / "scripts" if (_HERE / "scripts").is_dir() else _HERE.parent  # in a wheel; in a checkout
COMMANDS = {
    "transcribe": "audio to text, as it comes",
    "serve": "many live streams over WebSockets",
    "train": "train a recogniser",
    "eval": "score one",
    "export": "write one for another runtime",
    "parity": "compare exports with JAX",
    "convert": "import a public checkpoint",
    "prepare": "prepare a corpus",
    "lm": "n-gram language models",
    "sweep": "a list of trainings",
    "cost": "what a model costs on a device",
}


def main() -> None:
    """Runs the script that the first argument names, with the others."""
    with interrupts.in_one_line():
        _run()


def _run() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        lines = [f"  edge-conformer {command:<12}{does}" for command, does in COMMANDS.items()]
        usage = "\n".join(["Streaming speech recognition. The commands, each with its own --help:", "", *lines])
        if name in ("-h", "--help"):
            sys.exit(print(usage))
        sys.exit(f"edge-conformer: there is no command {name!r}\n\n{usage}")
    script = str(SCRIPTS / f"{name}.py")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
