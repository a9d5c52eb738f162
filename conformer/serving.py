"""Many live streams over WebSockets, in one process on one core, with the protocol of sherpa-onnx's online server.

A client sends float32 samples of one channel at the model's rate in binary messages, then the text `Done`. It gets
JSON: `text` and `segment` of the current segment whenever it has changed, once more with `is_final` when the segment
has ended, and at last the text `Done!`. docs/serving.md has the limits.
"""

import asyncio
import collections
import contextlib
import dataclasses
import http
import json
import signal
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from conformer.api import Model
from conformer.audio import AudioError, as_samples
from conformer.streaming import Segment, StreamError
from conformer.streaming.pool import Stream

TICK = 0.05  # seconds from a step of all streams to the next
LONGEST_FEED = 1.0  # seconds of audio that wait at most before features are computed
LOAD_SECONDS = 2.0  # that the load is averaged over
MESSAGE_BYTES, MESSAGES = 2**18, 4  # of a message; that wait to be read
UNSUPPORTED, INVALID, POLICY, BUSY = 1003, 1007, 1008, 1013  # WebSocket close codes


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server, beyond which it refuses or ends streams."""

    streams: int = 200  # at a time; others are refused
    load: float = 0.9  # share of the time spent recognising, above which no other stream is begun
    buffered_seconds: float = 5.0  # of a stream's audio that waits; no more is read meanwhile
    idle_seconds: float = 30.0  # without a message, or without a message being read, after which a stream is ended


class _Broken(Exception):
    """A client that is sent away; the close code and the reason."""


class _Client:
    """A connection, its stream, the audio that waits, and the results that have not been sent."""

    def __init__(self, connection: ServerConnection, stream: Stream):
        self.connection, self.stream = connection, stream
        self.blocks: collections.deque[np.ndarray] = collections.deque()
        self.waiting = 0  # samples in blocks
        self.ended = False  # no more audio will come
        self.taken, self.news = asyncio.Event(), asyncio.Event()
        self.results: collections.deque[str] = collections.deque()  # of segments that have ended
        self.partial: str | None = None  # the newest, where it has not been sent
        self.error: str | None = None
        self._shown, self._segment, self._heard = "", 0, 0.0

    def feed(self, rate: int) -> None:
        """Gives the stream the audio that waits, once that is about enough for its next window."""
        missing = self.stream.audio.missing_seconds
        if missing and (self.ended or self.waiting >= rate * min(missing, LONGEST_FEED)):
            try:
                if self.blocks:
                    self.stream.accept(np.concatenate(self.blocks))
                if self.ended:
                    self.stream.end()
            except StreamError as error:
                self.error = str(error)
            self.blocks.clear()
            self.waiting = 0
            self.taken.set()

    def collect(self) -> None:
        """Notes what the last step has changed, if it was this stream's."""
        heard = self.stream.audio.encoded_seconds
        if heard == self._heard and not (self.stream.finished or self.error):
            return
        self._heard = heard
        for segment in self.stream.transcript.take_segments():
            self.results.append(self._final(segment))
            self._segment, self._shown, self.partial = self._segment + 1, "", None
        if (text := self.stream.transcript.text) != self._shown:
            self._shown = text
            self.partial = self._message(text, self._segment, False)
        if self.stream.finished and not self._segment and not self.results:
            self.results.append(self._message("", 0, True))  # a client may wait for one
            self._segment = 1
        if self.results or self.partial or self.error or self.stream.finished:
            self.news.set()

    def _final(self, segment: Segment) -> str:
        times = [round(token.time - segment.start, 3) for token in segment.tokens]
        symbols = [token.symbol for token in segment.tokens]
        more = {"start_time": segment.start, "tokens": symbols, "timestamps": times}
        return self._message(segment.text, self._segment, True, **more, confidence=segment.confidence)

    def _message(self, text: str, segment: int, final: bool, **more: Any) -> str:
        return json.dumps({"text": text, "segment": segment, "is_final": final, "heard": round(self._heard, 3)} | more)


class Server:
    """Steps the streams of all clients together, every `TICK`.

    Args:
        model: what `conformer.load` returned.
    """

    def __init__(self, model: Model, limits: Limits):
        self._model, self._limits, self._rate = model, limits, model.sample_rate
        self._pool = model.pool(limits.streams)
        self._clients: set[_Client] = set()
        self._load, self.refused = 0.0, 0

    @property
    def status(self) -> dict[str, Any]:
        """The answer to `GET /status`."""
        streams = {"streams": len(self._clients), "limit": self._limits.streams, "refused": self.refused}
        return streams | {"load": round(self._load, 3), "sample_rate": self._rate}

    async def run(self, host: str, port: int, ready: "asyncio.Future[int] | None" = None) -> None:
        """Serves until the task is cancelled. `ready` gets the port, which is chosen where 0 is asked for.

        Raises OSError where the address cannot be had.
        """
        self._model.warm_up()
        limits: dict[str, Any] = dict(max_size=MESSAGE_BYTES, max_queue=MESSAGES, compression=None)
        async with serve(self._handle, host, port, process_request=self._answer, **limits) as server:
            if ready is not None:
                ready.set_result(next(iter(server.sockets)).getsockname()[1])
            await self._step()

    async def _step(self) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            for client in self._clients:
                client.feed(self._rate)
            self._pool.step()
            for client in self._clients:
                client.collect()
            busy = clock() - begun
            await asyncio.sleep(max(TICK - busy, 0))
            whole, begun = clock() - begun, clock()
            self._load += (busy / whole - self._load) * min(whole / LOAD_SECONDS, 1)

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers what is no stream, and refuses streams that there is no room for; None lets one in."""
        if request.path == "/status":
            return connection.respond(http.HTTPStatus.OK, json.dumps(self.status) + "\n")
        if reason := self._full():
            self.refused += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, reason + "\n")
        return None

    def _full(self) -> str | None:
        if len(self._clients) >= self._limits.streams:
            return f"busy: all {self._limits.streams} streams are taken: try again later"
        if self._load > self._limits.load:
            return f"busy: {len(self._clients)} streams keep the processor at its limit: try again later"
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        if len(self._clients) >= self._limits.streams:  # others came while its handshake lasted
            self.refused += 1
            return await connection.close(BUSY, self._full() or "")
        client = _Client(connection, self._pool.open(**self._model.stream_options))
        self._clients.add(client)
        tasks = [asyncio.create_task(self._receive(client)), asyncio.create_task(self._send(client))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except _Broken as error:
            code, reason = error.args
            await connection.close(code, reason)
        except ConnectionClosed:
            pass
        finally:
            for task in tasks:
                task.cancel()
            self._pool.abandon(client.stream)
            self._clients.discard(client)

    async def _receive(self, client: _Client) -> None:
        """Reads audio, as much as there is room for: a client that is faster than that is held up by the network."""
        while not client.ended:
            try:
                async with asyncio.timeout(self._limits.idle_seconds):
                    message = await client.connection.recv()
            except TimeoutError:
                raise _Broken(POLICY, f"no audio for {self._limits.idle_seconds:g} s: connect again") from None
            if message == "Done":
                client.ended = True
                return
            samples = _read(message)
            client.blocks.append(samples)
            client.waiting += len(samples)
            while client.waiting > self._limits.buffered_seconds * self._rate:
                client.taken.clear()
                await client.taken.wait()

    async def _send(self, client: _Client) -> None:
        """Sends results: every segment, but of partial texts the newest alone, however slowly a client reads."""
        while True:
            await client.news.wait()
            client.news.clear()
            if client.error:
                raise _Broken(POLICY, client.error[:100])
            finished = client.stream.finished
            messages = list(client.results)
            if client.partial:
                messages.append(client.partial)
            client.results.clear()
            client.partial = None
            try:
                async with asyncio.timeout(self._limits.idle_seconds):
                    for message in [*messages, *(["Done!"] * finished)]:
                        await client.connection.send(message)
            except TimeoutError:
                raise _Broken(POLICY, "results are not read: connect again") from None
            if finished:
                return


def _read(message: str | bytes) -> np.ndarray:
    """The samples of a message. Raises _Broken for what is none."""
    if isinstance(message, str):
        raise _Broken(UNSUPPORTED, "text that is not Done: send float32 samples in binary messages")
    if len(message) % 4:
        raise _Broken(INVALID, f"{len(message)} bytes are no float32 samples: send 4 bytes for each")
    try:
        return as_samples(np.frombuffer(message, "<f4"))
    except AudioError as error:
        raise _Broken(INVALID, str(error)[:100]) from None


async def serve_until_stopped(model: Model, limits: Limits, host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM; says where, once it does."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    serving = asyncio.create_task(Server(model, limits).run(host, port, ready))
    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends the process
            loop.add_signal_handler(name, serving.cancel)
    await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        print(f"ws://{host}:{ready.result()}: {limits.streams} streams at most, {model.sample_rate} Hz", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
