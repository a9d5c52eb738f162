"""Chromium without a window, driven through its DevTools protocol over a pipe; and a server of a folder."""

import contextlib
import fcntl
import functools
import http.server
import itertools
import json
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Root has no sandbox; a core that is shared has no GPU.
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--mute-audio")
READS, WRITES = 3, 4  # descriptors that the protocol has in the browser
FREE = 10  # descriptors from here on are not those


class BrowserError(ValueError):
    """A browser that is missing, or a page that failed; the message says which."""


def find_browser() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A page in a Chromium of its own, until `close`.

    Args:
        address: of the page.
        options: of the command line, beside OPTIONS.

    Raises BrowserError where no Chromium is installed.
    """

    def __init__(self, address: str, *options: str):
        program = find_browser()
        if program is None:
            raise BrowserError("Chromium is not installed: install the package chromium")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FREE) for end in (theirs_in, theirs_out)]
        actions = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(ends, (READS, WRITES), strict=True)]
        log = os.open(pathlib.Path(self._folder.name, "log"), os.O_CREAT | os.O_WRONLY)
        actions += [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        command = [program, *OPTIONS, f"--user-data-dir={self._folder.name}/profile", *options, "about:blank"]
        self._process = os.posix_spawn(program, command, os.environ, file_actions=actions, setpgroup=0)
        for end in (theirs_in, theirs_out, *ends, log):
            os.close(end)
        self._out, self._in = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self._numbers, self._session, self._buffer = itertools.count(1), None, b""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._send("Page.enable")
        self._send("Page.navigate", url=address)
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    @property
    def version(self) -> str:
        """The name and version of the browser, such as Chrome/150.0.1.2."""
        return self._send("Browser.getVersion")["product"].removeprefix("Headless")

    @property
    def process(self) -> int:
        """The process that runs the page."""
        return self._renderer()["id"]

    @property
    def processor_seconds(self) -> float:
        """Processor time that this process has taken, all of its threads."""
        return self._renderer()["cpuTime"]

    def evaluate(self, expression: str, **options: Any) -> Any:
        """The value of an expression, awaited. Raises BrowserError where it throws."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True} | options
        answer = self._send("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"] if not options["returnByValue"] else answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Waits until a condition on the document holds that a change to it makes true."""
        self.evaluate(
            "new Promise(resolve => {"
            f"  const look = () => ({condition}) && resolve();"
            "  new MutationObserver(look).observe(document, {subtree: true, childList: true, attributes: true});"
            "  look(); })"
        )

    def choose(self, selector: str, path: pathlib.Path) -> None:
        """Chooses a file in an input."""
        chooser = self.evaluate(f"document.querySelector({selector!r})", returnByValue=False)
        self._send("DOM.setFileInputFiles", objectId=chooser["objectId"], files=[str(path.absolute())])

    def picture(self, width: int, height: int) -> str:
        """A PNG of the page, in base64."""
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return self._send("Page.captureScreenshot", format="png")["data"]

    def close(self) -> None:
        """Ends the browser."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        with contextlib.suppress(BrokenPipeError):
            self._out.close()
        self._in.close()
        self._folder.cleanup()

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _renderer(self) -> dict[str, Any]:
        processes = self._send("SystemInfo.getProcessInfo", whole=True)["processInfo"]
        return max((one for one in processes if one["type"] == "renderer"), key=lambda one: one["cpuTime"])

    def _send(self, method: str, whole: bool = False, **parameters: Any) -> dict[str, Any]:
        """Calls a method: of the page once there is one, or of the whole browser."""
        message: dict[str, Any] = {"id": next(self._numbers), "method": method, "params": parameters}
        if self._session is not None and not whole:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._in.fileno(), 1 << 16)
            if not data:
                log = pathlib.Path(self._folder.name, "log").read_text(errors="replace")
                raise BrowserError(f"Chromium ended: {log[-500:]}")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
    """The address under which a folder is served on this machine."""
    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(_Silent, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass
