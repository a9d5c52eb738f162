"""The server on loopback: what clients get, who is refused, and clients that are fast, slow or broken."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile

import conformer

websockets = pytest.importorskip("websockets", reason="needs the extra server")
pytest.importorskip("onnxruntime", reason="needs the extra server")

from conformer.serving import Limits, Server  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
ARTEFACT = ROOT / "models" / "words_micro" / "onnx_int8.onnx"
HELLO = sorted(ROOT.glob("speech/hello/*.opus"))
TEXTS = [path.stem.replace("_", " ") for path in HELLO]
SPEECH = [soundfile.read(path, dtype="float32")[0] for path in HELLO]


@pytest.fixture(scope="module")
def model():
    return conformer.load(ARTEFACT)


def serving(model, use, **limits) -> Any:
    """Runs `use(address, server)` beside a server."""

    async def both():
        server, ready = Server(model, Limits(**limits)), asyncio.get_running_loop().create_future()
        task = asyncio.create_task(server.run("127.0.0.1", 0, ready))
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        try:
            return await use(f"ws://127.0.0.1:{ready.result()}", server)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return asyncio.run(both())


async def client(address, samples, block=1600):
    """Acts as a stock client: sends blocks as fast as they are taken, then Done, and reads results until Done!."""
    async with websockets.connect(address) as connection:
        for start in range(0, len(samples), block):
            await connection.send(samples[start : start + block].tobytes())
        await connection.send("Done")
        return await results(connection)


async def results(connection):
    heard = []
    async for message in connection:
        if message == "Done!":
            return heard
        heard.append(json.loads(message))
    raise AssertionError("the server hung up without Done!")


async def code_of(connection):
    """The close code and the reason that a connection ends with."""
    with pytest.raises(websockets.ConnectionClosed) as closed:
        while True:
            await connection.recv()
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def refusal(address):
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(address)
    return refused.value.response.status_code, refused.value.response.body.decode()


def test_many_clients_each_get_their_own_text(model):
    async def use(address, server):
        return await asyncio.gather(*(client(address, SPEECH[index % 3]) for index in range(12)))

    for index, heard in enumerate(serving(model, use)):
        assert [message["text"] for message in heard if message["is_final"]] == [TEXTS[index % 3]]
        assert heard[-1]["is_final"] and heard[-1]["segment"] == 0 and len(heard[-1]["tokens"]) == 4
        assert all(TEXTS[index % 3].startswith(message["text"]) for message in heard)
        assert heard[-1]["heard"] == pytest.approx(len(SPEECH[index % 3]) / 16000, abs=1.0)


def test_segments_are_counted_and_silence_is_one_empty_result(model):
    pause = np.zeros(2 * 16000, np.float32)

    async def use(address, server):
        two = await client(address, np.concatenate([SPEECH[0], pause, SPEECH[1]]))
        return two, await client(address, pause), await client(address, pause[:0])

    two, *silent = serving(model, use)
    finals = [(message["segment"], message["text"]) for message in two if message["is_final"]]
    assert finals == [(0, TEXTS[0]), (1, TEXTS[1])]
    for heard in silent:
        assert [(message["text"], message["is_final"]) for message in heard] == [("", True)]


def test_who_comes_when_all_streams_are_taken_is_refused_and_others_go_on(model):
    async def use(address, server):
        async with websockets.connect(address) as first:
            await first.send(SPEECH[0].tobytes()[:64000])
            refused = await refusal(address)
            assert server.status["streams"] == 1 and server.status["refused"] == 1
            await first.send(SPEECH[0].tobytes()[64000:])
            await first.send("Done")
            heard = await results(first)
        while server.status["streams"]:
            await asyncio.sleep(0)
        return refused, heard, await client(address, SPEECH[1])

    (status, reason), first, second = serving(model, use, streams=1)
    assert status == 503 and reason == "busy: all 1 streams are taken: try again later\n"
    assert first[-1]["text"] == TEXTS[0] and second[-1]["text"] == TEXTS[1]


def test_no_stream_is_begun_while_the_processor_has_no_time(model):
    async def use(address, server):
        return await refusal(address), await status(address)

    (code, reason), told = serving(model, use, load=-1.0)
    assert code == 503 and "keep the processor at its limit: try again later" in reason
    assert told["refused"] == 1 and told["streams"] == 0 and told["sample_rate"] == 16000


async def status(address):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    writer.write(b"GET /status HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_clients_that_send_anything_else_are_told_so_and_disturb_nobody(model):
    broken = {
        "hello": (1003, "text that is not Done: send float32 samples in binary messages"),
        b"abc": (1007, "3 bytes are no float32 samples: send 4 bytes for each"),
        np.full(4, np.nan, np.float32).tobytes(): (1007, "NaN"),
        (np.ones(4, np.float32) * 1e4).tobytes(): (1007, "samples"),
        bytes(2**18 + 4): (1009, ""),
    }

    async def send(address, message):
        async with websockets.connect(address) as connection:
            await connection.send(message)
            return await code_of(connection)

    async def use(address, server):
        good = asyncio.create_task(client(address, SPEECH[2]))
        told = [await send(address, message) for message in broken]
        hung_up = await websockets.connect(address)
        await hung_up.send(SPEECH[0].tobytes()[:64000])
        hung_up.transport.abort()
        heard = await good
        while server.status["streams"]:
            await asyncio.sleep(0)
        return told, heard

    told, heard = serving(model, use)
    for (code, reason), (expected, part) in zip(told, broken.values(), strict=True):
        assert code == expected and part in reason
    assert heard[-1]["text"] == TEXTS[2]


def test_who_sends_nothing_loses_the_stream(model):
    async def use(address, server):
        async with websockets.connect(address) as connection:
            return await code_of(connection)

    assert serving(model, use, idle_seconds=0.05) == (1008, "no audio for 0.05 s: connect again")


def test_of_a_client_that_sends_faster_than_it_is_heard_little_is_held(model):
    most = 0.0

    async def use(address, server):
        nonlocal most
        sending = asyncio.create_task(client(address, np.resize(SPEECH[0], 20 * 16000)))
        while not sending.done():
            await asyncio.sleep(0)
            most = max([most, *(one.waiting / 16000 for one in server._clients)])
        return await sending

    heard = serving(model, use, buffered_seconds=1.0)
    assert 1.0 < most <= 1.2  # a block more than the limit
    assert sum(len(message["text"].split()) for message in heard if message["is_final"]) >= 20


def test_who_reads_late_gets_every_segment_and_the_newest_text_alone(model):
    pause = np.zeros(2 * 16000, np.float32)

    async def use(address, server):
        async with websockets.connect(address) as connection:
            held, goes_on = asyncio.Event(), asyncio.Event()
            (one,) = server._clients
            send = one.connection.send

            async def slow(message):
                held.set()
                await goes_on.wait()
                await send(message)

            one.connection.send = slow
            for part in (SPEECH[0], pause, SPEECH[1]):
                for start in range(0, len(part), 32000):
                    await connection.send(part[start : start + 32000].tobytes())
            await connection.send("Done")
            await held.wait()
            while not one.stream.finished:
                await asyncio.sleep(0)
            goes_on.set()
            return await results(connection)

    heard = serving(model, use)
    assert [message["text"] for message in heard if message["is_final"]] == TEXTS[:2]
    assert len(heard) == 3  # the text on which it stopped, and two segments


def test_the_command_serves_until_it_is_told_to_stop():
    command = [sys.executable, "serve.py", f"--artefact={ARTEFACT}", "--port=0", "--streams=2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        address = re.match(r"(ws://127.0.0.1:\d+): 2 streams at most, 16000 Hz\n", line)
        assert address, line + process.stderr.read()
        assert asyncio.run(client(address[1], SPEECH[0]))[-1]["text"] == TEXTS[0]
        taken = [*command[:3], f"--port={address[1].rpartition(':')[2]}"]
        second = subprocess.run(taken, cwd=ROOT, capture_output=True, text=True)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 0 and process.stderr.read() == ""
    assert second.returncode == 1 and "cannot be listened at" in second.stderr and second.stderr.count("\n") == 1
