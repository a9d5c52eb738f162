"""Processes that send a signal, to end themselves or be interrupted, at a point of their own work.

The point is the same on any machine: nobody has to watch them for the moment.
"""

import os
import pathlib
import signal

FOLDER = str(pathlib.Path(__file__).parent)  # of sitecustomize.py, which an interpreter imports when it starts


def signal_at(
    point: str, number: signal.Signals = signal.SIGKILL, *, calls: int = 1, to: str = "process"
) -> dict[str, str]:
    """The environment of a process that sends a signal.

    Args:
        point: a module, when it begins to be imported; or "module:function" ("module:Class.method"), when it returns.
        calls: of that function, the last of which is the point; each process counts its own.
        to: "process", itself; "parent", which started it; or "group", all of its process group.
    """
    path = os.pathsep.join(filter(None, (FOLDER, os.environ.get("PYTHONPATH"))))
    values = {"SIGNAL_AT": point, "SIGNAL_NUMBER": str(int(number)), "SIGNAL_CALLS": str(calls), "SIGNAL_TO": to}
    return os.environ | {"PYTHONPATH": path} | values
