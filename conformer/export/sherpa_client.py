"""The stock sherpa-onnx client as a process of its own: it ends the process where a model's metadata is missing.

Run by `conformer.export.sherpa` with any Python that has sherpa-onnx; imports nothing of this project. Reads a job from
standard input and writes its results, both JSON, to standard output.
"""

import json
import sys
import wave

import numpy as np
import sherpa_onnx  # pyright: ignore[reportMissingImports]

BLOCK_SECONDS = 0.1  # handed over at a time
FEATURE_FRAMES = 100  # compared of each recording


def read(path: str) -> tuple[np.ndarray, int]:
    """Samples in [-1, 1) of a 16-bit WAV file, and their rate."""
    with wave.open(path) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return data.astype(np.float32) / 32768, file.getframerate()


def main() -> None:
    job = json.load(sys.stdin)
    recognizer = sherpa_onnx.OnlineRecognizer.from_wenet_ctc(
        tokens=job["tokens"],
        model=job["model"],
        chunk_size=job["chunk_size"],
        num_left_chunks=job["num_left_chunks"],
        num_threads=1,
    )
    results = []
    step = job["num_streams"]
    for first in range(0, len(job["files"]), step):
        group = [(recognizer.create_stream(), *read(path)) for path in job["files"][first : first + step]]
        length = max(len(samples) for _, samples, _ in group)
        rate = group[0][2]
        for start in range(0, length, int(BLOCK_SECONDS * rate)):
            for stream, samples, _ in group:
                if len(block := samples[start : start + int(BLOCK_SECONDS * rate)]):
                    stream.accept_waveform(rate, block)
            advance(recognizer, [stream for stream, *_ in group])
        for stream, _, _ in group:
            stream.accept_waveform(rate, np.zeros(int(job["tail_seconds"] * rate), np.float32))
            stream.input_finished()
        advance(recognizer, [stream for stream, *_ in group])
        for stream, samples, rate in group:
            result = json.loads(recognizer.get_result_as_json_string(stream))
            results.append({name: result[name] for name in ("text", "tokens", "timestamps")})
            results[-1]["features"] = features(recognizer, samples, rate)
    json.dump({"version": sherpa_onnx.__version__, "results": results}, sys.stdout)


def features(recognizer: sherpa_onnx.OnlineRecognizer, samples: np.ndarray, rate: int) -> list[float]:
    """Returns the features of the first frames, row after row; none where this version of the client gives none."""
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, samples)
    count = min(FEATURE_FRAMES, len(samples) * 100 // rate - 2)  # the last wait for more audio
    return list(stream.get_frames(0, count)) if hasattr(stream, "get_frames") and count > 0 else []


def advance(recognizer: sherpa_onnx.OnlineRecognizer, streams: list) -> None:
    """Decodes all that is ready, several streams in one call."""
    while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)


if __name__ == "__main__":
    main()
