"""Runs converters without their output."""

import contextlib
import io
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what converters print, and those of their warnings that nobody can act on."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        warnings.simplefilter("ignore", ResourceWarning)  # coremltools leaves a folder to the garbage collector
        yield
