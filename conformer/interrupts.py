"""Ctrl-C at any moment of a command is one line and exit status 130.

A script imports this module first: its other imports take seconds. Standard library only.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

STATUS = 130  # what shells report of a program that SIGINT has ended


def leave(remedy: str = "") -> NoReturn:
    """Ends the command because of an interrupt; `remedy` says what the user can do now."""
    _arm()  # whoever presses twice sees no traceback either
    print(f"{_name()}: interrupted{remedy and '; '}{remedy}", file=sys.stderr)
    sys.exit(STATUS)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Raises KeyboardInterrupt inside for an interrupt, as Python does, and leaves where nobody has caught it."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        leave()
    finally:
        _arm()


def _arm() -> None:
    """Makes an interrupt end the process, unless whoever started it has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(*_: Any) -> NoReturn:
    """An exception could be lost in an import or at the exit, or be shown with its traceback."""
    os.write(2, f"{_name()}: interrupted\n".encode())
    os._exit(STATUS)


def _name() -> str:
    return os.path.basename(sys.argv[0])


def _is_of_command() -> bool:
    """Returns whether a script runs as a command: not imported by a test, nor by its own worker processes."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return main is not None and os.path.dirname(os.path.abspath(main)) == os.path.dirname(_FOLDER)


_FOLDER = os.path.dirname(os.path.abspath(__file__))
if _is_of_command():
    _arm()
