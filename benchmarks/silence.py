"""Words that a recogniser writes into a minute of sound that holds no speech: there should be none."""

import pathlib
from collections.abc import Iterator

import numpy as np

from conformer import record
from conformer.background import coloured_noise, root_mean_square
from conformer.streaming import Recognizer
from conformer.streaming.engine import Engine
from conformer.training.checkpoint import load_model
from kernels.typing import Float

SHIPPED = ("words", "words_micro", "english_small")
SECONDS = 60
LEVELS_DB = (-60, -40, -20)  # of the root mean square, against full scale
CHUNK_SIZE, NUM_LEFT_CHUNKS = 16, 4


def run(workdir: str | pathlib.Path | None) -> dict:
    """Streams every sound to the model of a work directory; None = to each that is shipped."""
    models = pathlib.Path(__file__).parents[1] / "models"
    folders = [models / name for name in SHIPPED] if workdir is None else [pathlib.Path(workdir)]
    rows = []
    for folder in folders:
        config, model, tokenizer, step = load_model(folder)
        engine = Engine(config, model, chunk_size=CHUNK_SIZE, num_left_chunks=NUM_LEFT_CHUNKS)
        for name, sound in sounds(config.features.sample_rate):
            recognizer = Recognizer(engine, tokenizer)
            recognizer.accept(sound)
            text = recognizer.finish()
            rows.append({"model": folder.name, "step": step, "sound": name, "words": len(text.split()), "text": text})
    found = {"models": record.models(*folders), "rows": rows}
    return {"seconds": SECONDS, "chunk_size": CHUNK_SIZE, "num_left_chunks": NUM_LEFT_CHUNKS} | found


def table(result: dict) -> str:
    """A line a sound into which words were written, and the count of the others."""
    lines = [
        f"{row['model']:<14}{row['sound']:<24}{row['words']:4} words: {row['text'][:60]}" for row in result["rows"]
    ]
    written = [line for line, row in zip(lines, result["rows"], strict=True) if row["words"]]
    return "\n".join(
        [*written, f"silent on {len(lines) - len(written)} of {len(lines)} sounds of {result['seconds']} s"]
    )


def sounds(sample_rate: int) -> Iterator[tuple[str, Float[np.ndarray, " samples"]]]:
    """(name, float32 samples) of digital silence, noise, hum and music-like tones; always the same."""
    rng = np.random.default_rng(7)
    size = SECONDS * sample_rate
    yield "digital silence", np.zeros(size, np.float32)
    for level in LEVELS_DB:
        yield f"white noise {level} dB", _at(level, rng.standard_normal(size, dtype=np.float32))
        yield f"pink noise {level} dB", _at(level, coloured_noise(size, 1.0, rng))
        yield f"hum 50 Hz {level} dB", _at(level, _tone(50.0, size, sample_rate, num_harmonics=12))
        yield f"hum 60 Hz {level} dB", _at(level, _tone(60.0, size, sample_rate, num_harmonics=6))
    yield "sine 440 Hz", _at(-20, _tone(440.0, size, sample_rate, num_harmonics=1))
    yield "scale", _at(-20, _melody([0, 2, 4, 5, 7, 9, 11, 12], 0.4, 3.0, size, sample_rate))
    yield "arpeggio", _at(-20, _melody([0, 4, 7, 12, 7, 4], 0.15, 6.0, size, sample_rate))
    chords = [_melody([step + third for step in (0, 5, 7, 0)], 1.2, 0.5, size, sample_rate) for third in (0, 4, 7)]
    yield "chords", _at(-20, np.sum(chords, axis=0, dtype=np.float32))


def _at(level: float, sound: np.ndarray) -> np.ndarray:
    return sound * np.float32(10 ** (level / 20) / max(root_mean_square(sound), 1e-9))


def _tone(frequency: float, size: int, sample_rate: int, num_harmonics: int) -> np.ndarray:
    turns = np.arange(size) * (frequency / sample_rate)
    sound = sum(np.sin(2 * np.pi * order * turns) / order for order in range(1, num_harmonics + 1))
    return np.asarray(sound, np.float32)


def _melody(steps: list[int], seconds: float, decay: float, size: int, sample_rate: int) -> np.ndarray:
    """Notes in turn, in half tones above 220 Hz, each of which falls as exp(-decay t)."""
    length = int(seconds * sample_rate)
    fall = np.exp(-decay * np.arange(length) / sample_rate).astype(np.float32)
    notes = [_tone(220.0 * 2 ** (step / 12), length, sample_rate, num_harmonics=5) * fall for step in steps]
    tune = np.concatenate(notes)
    return np.tile(tune, -(-size // len(tune)))[:size]
