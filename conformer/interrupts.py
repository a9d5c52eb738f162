"""Ends a command on Ctrl-C with one line and exit status 130, and silently if its reader leaves (`| head`).

A package that is missing is one line too. A script imports this module first: its other imports take seconds. Standard
library only.
"""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn

STATUS = 130  # what shells report of a program that SIGINT has ended
UNREAD = 141  # and of one that SIGPIPE has


def leave(remedy: str = "") -> NoReturn:
    """Ends the command because of an interrupt; `remedy` says what the user can do now."""
    _arm()  # whoever presses twice sees no traceback either
    print(f"{_name()}: interrupted{remedy and '; '}{remedy}", file=sys.stderr)
    sys.exit(STATUS)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Raises KeyboardInterrupt inside for an interrupt, as Python does, and leaves where nobody has caught it.

    Leaves silently where nobody reads what the command prints.
    """
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            yield
        finally:
            if sys.stdout:
                sys.stdout.flush()  # an error at the exit would be shown with its traceback
    except KeyboardInterrupt:
        leave()
    except BrokenPipeError:
        if not (unread := _unread()):
            raise  # it is another pipe, such as one to a worker process
        for output in unread:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # takes what is left to be flushed
        sys.exit(UNREAD)
    finally:
        _arm()


def _unread() -> list[int]:
    """Returns which of standard output and standard error are pipes that nobody reads any more."""
    poll = select.poll()  # Windows has none, and raises no BrokenPipeError for them
    for output in (1, 2):
        poll.register(output, 0)
    return [output for output, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]


def _arm() -> None:
    """Makes an interrupt end the process, unless whoever started it has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(*_: Any) -> NoReturn:
    """An exception could be lost in an import or at the exit, or be shown with its traceback."""
    os.write(2, f"{_name()}: interrupted\n".encode())
    os._exit(STATUS)


def _report_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Names a package that is not installed, as after `make hello`, which installs few; shows other errors whole."""
    if not isinstance(error, ModuleNotFoundError):
        return sys.__excepthook__(kind, error, trace)
    print(
        f"{_name()}: the package {error.name} is missing: `make setup` installs all that the project needs",
        file=sys.stderr,
    )


def _name() -> str:
    return os.path.basename(sys.argv[0])


def _is_of_command() -> bool:
    """Returns whether a script runs as a command: not imported by a test, nor by its own worker processes."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return main is not None and os.path.dirname(os.path.abspath(main)) == os.path.dirname(_FOLDER)


_FOLDER = os.path.dirname(os.path.abspath(__file__))
if _is_of_command():
    _arm()
    sys.excepthook = _report_missing
