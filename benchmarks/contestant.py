"""The process of one contestant of `bench.py streaming`: the same requests, the same stopwatch for all of them.

Imported by the peers' processes too: only NumPy and the standard library, and Python 3.11.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from conformer.system import peak_memory_mib

SETTLE = 2  # chunks before a block's first that is timed: the previous contestant's weights fill the caches


class Streamer(Protocol):
    """One stream of one runtime."""

    versions: dict[str, str]
    weight_bytes: int  # of all parameters, as they are kept

    def reset(self) -> None:
        """Begins the stream anew."""
        ...

    def step(self, window: np.ndarray) -> np.ndarray:
        """Log-probabilities (1, frames, vocab) of the next chunk, whose features are (1, window, mel)."""
        ...


def serve(load: Callable[..., Streamer]) -> None:
    """Answers requests, lines of JSON, until the input ends.

    "load" passes its arguments to `load` and answers with versions and bytes of weights, or with "skipped", a reason;
    "follow" begins the stream anew and writes the log-probabilities of all windows of the folder to a file;
    "time" goes on with the stream for a number of chunks and answers with seconds.
    """
    streamer = windows = None
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        if command == "load":
            windows = np.load(pathlib.Path(request["folder"], "windows.npy"))
            try:
                streamer = load(**request)
                reply = {"versions": streamer.versions, "weight_bytes": streamer.weight_bytes}
            except Unavailable as error:
                reply = {"skipped": str(error)}
        elif command == "follow":
            assert streamer is not None and windows is not None, "load first"
            streamer.reset()
            np.save(request["output"], np.stack([streamer.step(window) for window in windows]))
            reply = {}
        else:
            assert streamer is not None and windows is not None, "load first"
            seconds = _time(streamer.step, windows, request["chunks"])
            reply = {"seconds": seconds, "peak_memory_mib": peak_memory_mib()}
        print(json.dumps(reply), flush=True)


class Unavailable(ValueError):
    """A runtime that cannot take part here; the message says why and what to do."""


def _time(step: Callable[[np.ndarray], np.ndarray], windows: np.ndarray, chunks: int) -> list[float]:
    seconds = []
    for index in range(SETTLE + chunks):
        window = windows[index % len(windows)]
        start = time.perf_counter()
        step(window)
        seconds.append(time.perf_counter() - start)
    return seconds[SETTLE:]
