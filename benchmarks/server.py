"""Live streams of serve.py on one core: how late their texts are, what a stream holds, and who is refused.

Clients on the other cores send recordings of speech/hello over loopback at the speed of speech, again and again with a
second of silence between, each from a place of its own. The lag of a text is counted from when the last audio that it
is based on was spoken: 100 ms of it are the client's block, 45 ms what the network looks ahead.
"""

import asyncio
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks import harness
from conformer import api, record, system
from conformer.audio import load_audio

ROOT = pathlib.Path(__file__).parents[1]
SMALL = "--artefact=models/words_micro/onnx_int8.onnx"
CASES = (  # flags of serve.py, streams at a time
    (SMALL, 50),
    (SMALL, 100),
    (SMALL, 200),
    ("--workdir=words", 50),
    ("--workdir=words", 100),
    ("--workdir=english_small", 4),
    ("--workdir=english_small", 8),
)
SECONDS = 30.0  # that each stream lasts
BLOCK_SECONDS = 0.1
PAUSE_SECONDS = 1.5  # between two recordings: a segment ends in it
BEYOND = 20  # clients that come when the server is full
RAMP_SECONDS = 5.0  # in which streams begin


@dataclasses.dataclass
class Heard:
    """The observations of the clients of a case."""

    lags: list[float] = dataclasses.field(default_factory=list)  # seconds, of each text
    ends: list[float] = dataclasses.field(default_factory=list)  # seconds from Done to Done!
    texts: list[str] = dataclasses.field(default_factory=list)  # of each stream
    refused: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)  # why streams ended early


def run() -> dict:
    """A row for each case. Raises ValueError where the extra `server` is missing."""
    try:
        import websockets  # noqa: F401
    except ImportError:
        raise ValueError("the package websockets is missing: pip install -c requirements.lock -e '.[server]'") from None
    rows = [case(flag, streams) for flag, streams in CASES]
    models = record.models(*(ROOT / "models" / name for name in ("words_micro", "words", "english_small")))
    return {"models": models, "versions": record.versions("websockets", "onnxruntime", "jax", "numpy"), "rows": rows}


def case(flag: str, streams: int) -> dict[str, Any]:
    """Serves so many streams at a time, and one case of clients that are too many."""
    model = api.load(flag.partition("=")[2])
    speech = spoken(model.sample_rate)
    whole = [model.transcribe(audio).text for audio in speech]
    command = [sys.executable, "serve.py", flag, f"--streams={streams}", "--port=0"]
    start, others = time.perf_counter(), system.cores()[1:] or system.cores()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.match(r"ws://\S+:\d+", server.stdout.readline())
            if address is None:
                raise ValueError(f"{' '.join(command)} did not start: run it to see why")
            started, before = time.perf_counter() - start, memory_mib(server.pid)
            used = processor_seconds(server.pid)
            with system.on_cores(others):
                heard, share, during = asyncio.run(clients(address[0], server.pid, speech, streams, model.sample_rate))
            used = processor_seconds(server.pid) - used
        finally:
            server.send_signal(signal.SIGTERM)
    lags, ends = milliseconds(heard.lags), milliseconds(heard.ends)
    row = {
        "model": flag.partition("=")[2],
        "streams": streams,
        "lag_ms": lags,  # 50, 95, 99 %
        "end_ms": ends,
        "core_share": round(share, 3),
        "core_seconds_a_second": round(used / (SECONDS * streams), 5),  # of audio: other work does not change it much
        "start_seconds": round(started, 2),
        "memory_mib": round(before, 1),
        "kib_a_stream": round(1024 * (during - before) / streams),
        "refused": len(heard.refused),
        "tried_beyond": BEYOND,
        "reasons": sorted(set(heard.refused)),
        "finished": len(heard.texts),
        "lost": sorted(set(heard.lost)),
        "as_transcribed": sum(any(text == other for other in whole) for text in heard.texts),
        "load_average": os.getloadavg()[0],
    }
    print(table({"rows": [row]}), flush=True)
    return row


def spoken(rate: int) -> list[np.ndarray]:
    """The audio that clients send, each from another recording on."""
    pause = np.zeros(int(PAUSE_SECONDS * rate), np.float32)
    recordings = [load_audio(path, rate) for path in sorted(ROOT.glob("speech/hello/*.opus"))]
    variants = []
    for first in range(len(recordings)):
        turn = [part for samples in recordings[first:] + recordings[:first] for part in (samples, pause)]
        variants.append(np.resize(np.concatenate(turn), int(SECONDS * rate)))
    return variants


def milliseconds(times: list[float]) -> list[int]:
    """The 50th, 95th and 99th percentile of seconds."""
    return [round(1000 * float(x)) for x in np.percentile(times, (50, 95, 99))] if times else []


async def clients(
    address: str, process: int, speech: list[np.ndarray], streams: int, rate: int
) -> tuple[Heard, float, float]:
    """Runs a case; what was heard, the server's share of a core and its memory in MiB, while all streams are live."""
    heard = Heard()
    async with asyncio.TaskGroup() as group:
        for index in range(streams):
            delay = RAMP_SECONDS * index / streams
            group.create_task(watched(address, speech[index % len(speech)], rate, delay, heard))
        await asyncio.sleep(RAMP_SECONDS + 5)
        begun, used = time.perf_counter(), processor_seconds(process)
        await asyncio.gather(*(refused(address, heard) for _ in range(BEYOND)))
        await asyncio.sleep(SECONDS - RAMP_SECONDS - 10)
        share = (processor_seconds(process) - used) / (time.perf_counter() - begun)
        during = memory_mib(process)
    return heard, share, during


async def watched(address: str, samples: np.ndarray, rate: int, delay: float, heard: Heard) -> None:
    """One live stream; notes why, where it does not come to its end."""
    import websockets

    try:
        await client(address, samples, rate, delay, heard)
    except (websockets.WebSocketException, OSError) as error:
        heard.lost.append(" ".join(str(error).split()))


async def client(address: str, samples: np.ndarray, rate: int, delay: float, heard: Heard) -> None:
    """One live stream."""
    import websockets

    await asyncio.sleep(delay)
    size, texts = int(BLOCK_SECONDS * rate), []
    async with websockets.connect(address, compression=None, open_timeout=60, ping_interval=None) as connection:
        start = time.perf_counter()

        async def receive() -> None:
            async for message in connection:
                if message == "Done!":
                    return
                result = json.loads(message)
                if not done and result["text"]:
                    heard.lags.append(time.perf_counter() - start - result["heard"])
                if result["is_final"]:
                    texts.append(result["text"])

        done, receiving = False, asyncio.create_task(receive())
        for first in range(0, len(samples), size):
            await asyncio.sleep(max(0.0, start + (first + size) / rate - time.perf_counter()))
            await connection.send(samples[first : first + size].tobytes())
        done, ended = True, time.perf_counter()
        await connection.send("Done")
        await receiving
        heard.ends.append(time.perf_counter() - ended)
        heard.texts.append(" ".join(texts))


async def refused(address: str, heard: Heard) -> None:
    """One that comes when the server is full."""
    import websockets

    try:
        async with websockets.connect(address, open_timeout=60):
            pass
    except websockets.InvalidStatus as error:
        heard.refused.append((error.response.body or b"").decode())


def processor_seconds(process: int) -> float:
    """Reads the processor seconds that a process has used so far."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(process: int) -> float:
    """Reads the resident memory of a process, in MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{process}/status").read_text())[0]) / 1024


def table(result: dict) -> str:
    """A line a case."""
    return harness.table(
        ("model, streams", "lag: 50, 95, 99 %", "end", "of a core", "memory", "a stream", "refused", "right"),
        [
            (
                f"{row['model']}, {row['streams']}",
                ", ".join(map(str, row["lag_ms"])) + " ms",
                f"{row['end_ms'][1]} ms",
                f"{row['core_share']:.0%}",
                harness.mebibytes(row["memory_mib"]),
                f"{row['kib_a_stream']} KiB",
                f"{row['refused']} of {row['tried_beyond']}",
                f"{row['as_transcribed']} of {row['finished']}",
            )
            for row in result["rows"]
        ],
    )
