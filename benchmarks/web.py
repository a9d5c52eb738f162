"""The page of examples/web in Chromium, on real speech: its text beside transcribe.py's, speed and memory.

Recordings come as files, on one core that a program without an end keeps busy too; then as the microphone, at the speed
of speech, through the file that Chromium takes for one. `python -m benchmarks.web docs/web.png` draws the page while it
listens.
"""

import base64
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import soundfile

from benchmarks import browser, harness
from conformer import record, system
from conformer.data import load_manifest
from kernels.typing import Float

ROOT = pathlib.Path(__file__).parents[1]
ARTEFACT = ROOT / "models" / "words_micro" / "onnx_int8.onnx"
SOURCE = ROOT.parent / "shared" / "data" / "connected_words_16k"
RATE = 16_000
FILES = 20
STATE = "document.body.dataset.state"
WORDS = "[...document.querySelectorAll('.word')].map(word => ({...word.dataset}))"
LEAD = 1.0  # seconds of silence in front of what the microphone hears
# What the page hands to its worker is kept: a capture device loses sound where the machine is busy, and a stream that
# begins elsewhere is cut into other chunks.
KEEP = """
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, transfer) {
  if (message.start) window.heard = [];
  if (message.samples) window.heard.push(...message.samples);
  return post.call(this, message, transfer);
}; 0"""
HEARD = """
(() => {
  const bytes = new Uint8Array(Float32Array.from(window.heard).buffer);
  return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
})()"""
TAIL = 1.0  # and behind, before it is stopped
PICTURE = (760, 490)  # pixels


def run(source: str | None) -> dict[str, Any]:
    """Measures the shipped model. Raises ValueError where the speech, Chromium or npm is missing."""
    samples = recordings(source)
    page = page_builder()
    with tempfile.TemporaryDirectory() as folder:
        out = _built(folder)
        expected = by_python(ARTEFACT, samples)
        with system.on_cores(system.cores()[:1]), _busy():
            files = by_file(out, samples)
        microphone = by_microphone(out, samples)
        heard = by_python(ARTEFACT, [row["heard"] for row in microphone["rows"]])
    return {
        "models": record.models(ARTEFACT.parent),
        "runtime": page.RUNTIME,
        "artefact": ARTEFACT.name,
        "files": summary(files, expected),
        "microphone": summary(microphone, heard)
        | {
            "same_text_as_file": sum(
                row["text"] == record["text"] for row, record in zip(microphone["rows"], expected, strict=True)
            )
        },
    }


def recordings(source: str | None = None, count: int = FILES) -> list[Float[np.ndarray, " samples"]]:
    """Returns `count` recordings, spread evenly over the test split."""
    test = [utterance for utterance in load_manifest(pathlib.Path(source or SOURCE)) if utterance.split == "test"]
    return [utterance.samples(RATE) for utterance in test[:: max(len(test) // count, 1)][:count]]


def picture(path: pathlib.Path) -> None:
    """Draws the page as it hears a recording through the microphone (PNG)."""
    with tempfile.TemporaryDirectory() as folder:
        heard = _write(pathlib.Path(folder, "microphone.wav"), np.concatenate(recordings(count=2)))
        with _opened(_built(folder), *_fake_microphone(heard)) as view:
            view.evaluate("document.querySelector('#microphone').click()")
            view.until("document.querySelectorAll('.word').length >= 7")
            path.write_bytes(base64.b64decode(view.picture(*PICTURE)))


def table(result: dict[str, Any]) -> str:
    """A line for each way in."""
    return "\n".join(f"{way:<11}{_line(result[way])}" for way in ("files", "microphone"))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['same_text']} of {row['recordings']} texts as transcribe.py's; real-time factor "
        f"{row['real_time_factor']:.3f}, {row['processor_factor']:.3f} of processor time; "
        f"{row['shown_bytes'] / 2**20:.1f} MiB shown, {harness.mebibytes(row['process_mib'])} of its process; "
        f"times within {row['time_difference']:.3f} s, confidence within {row['confidence_difference']:.3f}"
    )


def summary(result: dict[str, Any], expected: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the recordings, beside transcribe.py's records of them."""
    rows = result["rows"]
    pairs = [
        (found, wanted)
        for row, record in zip(rows, expected, strict=True)
        if row["text"] == record["text"]
        for found, wanted in zip(row["words"], record["words"], strict=True)
    ]
    return {
        "browser": result["browser"],
        "recordings": len(rows),
        "same_text": sum(row["text"] == record["text"] for row, record in zip(rows, expected, strict=True)),
        "audio_seconds": sum(row["audio_seconds"] for row in rows),
        "real_time_factor": sum(row["compute_seconds"] for row in rows) / sum(row["audio_seconds"] for row in rows),
        "highest_real_time_factor": max(row["compute_seconds"] / row["audio_seconds"] for row in rows),
        "processor_factor": result["processor_seconds"] / sum(row["audio_seconds"] for row in rows),
        "shown_bytes": max(row["shown_bytes"] for row in rows),
        "process_mib": result["process_mib"],
        "feature_difference": result["feature_difference"],
        "time_difference": max(abs(a[key] - b[key]) for a, b in pairs for key in ("start", "end")),
        "confidence_difference": max(abs(a["confidence"] - b["confidence"]) for a, b in pairs),
        "texts": [row["text"] for row in rows],
    }


def page_builder() -> Any:
    """The module examples/web/build.py."""
    path = ROOT / "examples" / "web" / "build.py"
    spec = importlib.util.spec_from_file_location("web_build", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_python(artefact: pathlib.Path, samples: Sequence[Float[np.ndarray, " samples"]]) -> list[dict[str, Any]]:
    """Returns what transcribe.py writes about each recording."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write(pathlib.Path(folder, f"{index}.wav"), row, exact=True) for index, row in enumerate(samples)]
        results = pathlib.Path(folder, "results.json")
        command = [sys.executable, "transcribe.py", f"--artefact={artefact}", f"--json={results}", *map(str, paths)]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        return json.loads(results.read_text())


def by_file(page: pathlib.Path, samples: Sequence[Float[np.ndarray, " samples"]]) -> dict[str, Any]:
    """Returns what the page shows for recordings that are chosen as files."""
    with tempfile.TemporaryDirectory() as folder, _opened(page) as view:
        rows, before = [], view.processor_seconds
        for row in samples:
            view.choose("#file", _write(pathlib.Path(folder, "speech.wav"), row))
            view.until(f"{STATE} !== 'ready'")
            view.until(f"{STATE} === 'ready'")
            rows.append(_shown(view))
        return _result(view, rows, before)


def by_microphone(page: pathlib.Path, samples: Sequence[Float[np.ndarray, " samples"]]) -> dict[str, Any]:
    """Returns what the page shows for recordings played to its microphone after 1 s of silence, and what it heard."""
    with tempfile.TemporaryDirectory() as folder:
        heard = pathlib.Path(folder, "microphone.wav")
        with _opened(page, *_fake_microphone(heard)) as view:
            view.evaluate(KEEP)
            rows, before = [], view.processor_seconds
            for row in samples:
                _write(heard, np.concatenate([np.zeros(int(LEAD * RATE), np.float32), row]))
                seconds = LEAD + len(row) / RATE + TAIL
                view.evaluate("document.querySelector('#microphone').click()")
                view.until(f"{STATE} === 'listening' || document.querySelector('#problem').textContent")
                view.until(f"parseFloat(document.querySelector('#audio').textContent) >= {seconds}")
                view.evaluate("document.querySelector('#microphone').click()")
                view.until(f"{STATE} === 'ready'")
                heard_samples = np.frombuffer(base64.b64decode(view.evaluate(HEARD)), np.float32)
                rows.append(_shown(view) | {"heard": heard_samples})
            return _result(view, rows, before)


def _fake_microphone(path: pathlib.Path) -> list[str]:
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    return [*fake, f"--use-file-for-fake-audio-capture={path}%noloop"]


def _built(folder: str) -> pathlib.Path:
    page, out = page_builder(), pathlib.Path(folder, "page")
    page.build(ARTEFACT, out)
    page.fetch_runtime(out / "onnxruntime")
    return out


@contextlib.contextmanager
def _opened(page: pathlib.Path, *options: str) -> Iterator[browser.Page]:
    with browser.served(page) as address, browser.Page(address, *options) as view:
        view.until(f"['ready', 'failed'].includes({STATE})")
        yield view


def _write(path: pathlib.Path, samples: Float[np.ndarray, " samples"], exact: bool = False) -> pathlib.Path:
    soundfile.write(path, samples, RATE, "FLOAT" if exact else "PCM_16")
    return path


def _shown(view: browser.Page) -> dict[str, Any]:
    """The words and figures of the page. Raises BrowserError where it reports a problem."""
    if problem := view.evaluate("document.querySelector('#problem').textContent"):
        raise browser.BrowserError(problem)
    words: list[dict[str, Any]] = [
        {"text": word["text"]} | {name: float(word[name]) for name in ("start", "end", "confidence")}
        for word in view.evaluate(WORDS)
    ]
    figures = {
        name: float(value) for name, value in view.evaluate("({...document.body.dataset})").items() if name != "state"
    }
    return {
        "text": " ".join(word["text"] for word in words),
        "words": words,
        "audio_seconds": figures["audio"],
        "compute_seconds": figures["compute"],
        "shown_bytes": figures["memory"],
    }


def _result(view: browser.Page, rows: list[dict[str, Any]], before: float) -> dict[str, Any]:
    return {
        "rows": rows,
        "processor_seconds": view.processor_seconds - before,  # of the whole page, drawing and decoding too
        "browser": view.version,
        "process_mib": system.peak_memory_mib(view.process),
        "feature_difference": float(view.evaluate("document.querySelector('#check').textContent")),
    }


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Keeps the core of this process busy with another."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    picture(pathlib.Path(sys.argv[1]))
