"""The output of a run while it trains: metrics.jsonl, TensorBoard events, a progress bar."""

import json
import pathlib
import sys
import time

import tensorboardX
import tqdm

from conformer import system

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a line, and the same numbers to TensorBoard.

    A run that resumes from step n first removes the lines after n: those steps are about to be repeated. Muted, it
    writes nothing: of several processes one does.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int, *, muted: bool = False):
        self._muted = muted
        if muted:
            return
        path = workdir / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= start_step]
        system.write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step)

    def write(self, step: int, **values: float) -> None:
        """Writes the values of `step` (updates made so far)."""
        if self._muted:
            return
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._muted:
            return
        self._file.close()
        self._board.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Reads what `MetricsLog` wrote, a dictionary a line; an empty list for a model without its log."""
    path = workdir / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Progress:
    """A bar on a terminal, a line now and then elsewhere; muted, nothing. Both say the time that is left."""

    def __init__(self, start_step: int, num_steps: int, *, muted: bool = False):
        self._muted = muted
        self._on_terminal = sys.stderr.isatty()
        self._start, self._step, self._num_steps = start_step, start_step, num_steps
        self._began = time.perf_counter()
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=muted or not self._on_terminal,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def update(self) -> None:
        """Counts one more step as done."""
        self._step += 1
        self._bar.update()

    def set_aside(self, seconds: float) -> None:
        """Leaves out of the estimate what does not come again, such as compilation."""
        self._began += seconds

    @property
    def seconds_left(self) -> float:
        """The seconds that the remaining steps take if they are as fast as those before."""
        elapsed = time.perf_counter() - self._began
        return elapsed / max(1, self._step - self._start) * (self._num_steps - self._step)

    def show(self, step: int, **values: str) -> None:
        """Shows the latest values."""
        values["left"] = tqdm.tqdm.format_interval(self.seconds_left)
        if self._on_terminal:
            self._bar.set_postfix(values, refresh=False)
        else:
            self.say(f"step {step}: " + ", ".join(f"{name} {value}" for name, value in values.items()))

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        if self._muted:
            return
        tqdm.tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _step(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
