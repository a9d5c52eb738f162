"""Serves a recogniser to many live streams at a time, with the protocol of sherpa-onnx's WebSocket clients.

  python serve.py --artefact=models/words_micro/onnx_int8.onnx
  python serve.py --workdir=runs/words --streams=50 --port=6006

One process uses one core: start one for each core. Needs the extra `server`; docs/serving.md has
the protocol, the limits and what a core can do. Ctrl-C ends it.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import os

# Before NumPy is loaded: on products so small, threads wait for each other longer than they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# isort: split
import asyncio
import sys

from absl import flags

from conformer import system
from conformer.command import run_command
from conformer.model_flags import ModelFlags

MODEL = ModelFlags()
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 = every one of this machine.")
PORT = flags.DEFINE_integer("port", 6006, "Port to listen at; 0 = any that is free.", lower_bound=0, upper_bound=65535)
STREAMS = flags.DEFINE_integer("streams", 200, "Streams at a time; others are refused.", lower_bound=1)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        sys.exit(f"serve.py: {arguments[1]} is no flag: name a model with --workdir or --artefact (see --help)")
    system.use_one_core()
    try:
        from conformer.serving import Limits, serve_until_stopped
    except ModuleNotFoundError as error:
        if error.name != "websockets":
            raise
        sys.exit("serve.py: the package websockets is missing: pip install -c requirements.lock -e '.[server]'")
    try:
        model = MODEL.load()
        asyncio.run(serve_until_stopped(model, Limits(streams=STREAMS.value), HOST.value, PORT.value))
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"serve.py: {error}")
    except OSError as error:  # the port is taken, say
        sys.exit(f"serve.py: {HOST.value}:{PORT.value} cannot be listened at ({error.strerror}): name another --port")


if __name__ == "__main__":
    run_command(main)
