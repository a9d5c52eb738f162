"""The files that `tests/fuzz.py` damages, how each kind is read, and when a result counts as a silent loss."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import soundfile
from flax import nnx

from conformer.artefacts.loading import load_artefact
from conformer.audio import load_audio
from conformer.config import Config
from conformer.data import load_manifest
from conformer.language.arpa import read_arpa, write_arpa
from conformer.language.compact import read_compact, write_compact
from conformer.language.estimate import train_ngram
from conformer.system import write_text
from conformer.tokenizer import load_tokenizer
from conformer.training.checkpoint import Checkpoints, load_model, save_weights
from conformer.training.state import initial_state
from tests.fuzz_mutations import Damage
from tests.small_model import TOKENIZER, make_config, make_model
from tests.test_containers import KINDS

ROOT = pathlib.Path(__file__).parents[1]
MICRO, CLIP = ROOT / "models" / "words_micro", ROOT / "speech" / "hello" / "go_right_zero_up.opus"
RATE = 8_000
_AUDIO_BEGINS = 1_024  # bytes; damage behind them leaves what the header says of lengths, rate and channels


class Target(NamedTuple):
    """A kind of input. A folder is made once; one of its files is damaged at a time."""

    share: float  # of all inputs
    is_text: bool
    make: Callable[[pathlib.Path], list[pathlib.Path]]  # fills a folder; the files to damage
    read: Callable[[pathlib.Path], Any]  # reads a file of the folder, as the commands do
    lost: Callable[[Any, Any, Damage], str]  # value of the whole file, of the damaged one -> what is lost, or ""
    command: Callable[[pathlib.Path], list[str]]  # that reads the file


# ---------------------------------------------------------------------- audio


def _make_audio(folder: pathlib.Path) -> list[pathlib.Path]:
    speech = np.random.default_rng(0).normal(0, 0.1, RATE // 2).clip(-0.9, 0.9)
    files = []
    for format, subtype in KINDS:
        files.append(folder / f"{format}_{subtype}.audio".lower())
        soundfile.write(files[-1], speech, RATE, format=format, subtype=subtype)
        files[-1].write_bytes(_repeatable(files[-1].read_bytes()))
    return files


def _repeatable(data: bytes) -> bytes:
    """The file without the random number of an Ogg stream and the date of a PEAK chunk."""
    if (peak := data.find(b"PEAK")) >= 0:
        data = data[: peak + 12] + bytes(4) + data[peak + 16 :]
    if not data.startswith(b"OggS"):
        return data
    pages = []
    for page in data.split(b"OggS")[1:]:
        page = bytearray(b"OggS" + page)
        page[14:18] = page[22:26] = bytes(4)
        checksum = 0
        for byte in page:
            checksum ^= byte << 24
            for _ in range(8):
                checksum = (checksum << 1) ^ (0x104C11DB7 if checksum & 0x80000000 else 0)
        page[22:26] = checksum.to_bytes(4, "little")
        pages.append(bytes(page))
    return b"".join(pages)


def _lost_audio(whole: np.ndarray, samples: np.ndarray, damage: Damage) -> str:
    if damage.first < _AUDIO_BEGINS and set(damage.kinds) != {"cut"}:
        return ""
    different = damage.only_lost and not np.array_equal(whole, samples)
    return f"{len(whole)} samples, {len(samples)} read" if different or len(samples) < len(whole) else ""


# ------------------------------------------------------- manifests and texts


def _make_manifest(folder: pathlib.Path) -> list[pathlib.Path]:
    rows = [
        {"id": f"u{number}", "audio": f"u{number}.flac", "duration": 1.5, "text": f"go left {number}", "speaker": "a"}
        for number in range(12)
    ]
    string = {"id": "s", "text": "go", "segments": [["a.flac", 0], ["b.flac", 80]], "lead": 8, "num_samples": 900}
    rows.append(string | {"noise_seed": 1, "noise_dbfs": -60.5, "sample_rate": RATE, "duration": 0.1, "split": "dev"})
    path = folder / "speech.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [path]


def _lost_rows(_: Any, rows: tuple[int, int], damage: Damage) -> str:
    lines, utterances = rows
    return f"{lines} lines, {utterances} utterances" if lines != utterances else ""


def _read_manifest(path: pathlib.Path) -> tuple[int, int]:
    utterances = load_manifest(path)
    lines = [line for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    return len(lines), len(utterances)


def _make_arpa(folder: pathlib.Path) -> list[pathlib.Path]:
    texts = [text for text in ("zero one five", "go up left", "go down right", "eight one zero go") for _ in range(3)]
    write_arpa(train_ngram(texts), folder / "words.arpa")
    write_compact(train_ngram(texts), folder / "words.lm")
    return [folder / "words.arpa", folder / "words.lm"]


def _read_arpa(path: pathlib.Path) -> list[float]:
    model = read_arpa(path) if path.suffix == ".arpa" else read_compact(path)[0]
    return [model.sentence(text) for text in ("go up left", "one five", "unknown go")]


def _lost_if_different(whole: Any, value: Any, damage: Damage) -> str:
    return "what was read of a cut file differs" if set(damage.kinds) == {"cut"} and whole != value else ""


# --------------------------------------------------------------------- models


def _make_config(folder: pathlib.Path) -> list[pathlib.Path]:
    _link(MICRO, folder, "config.json")
    return [folder / "config.json"]


def _read_config(path: pathlib.Path) -> Config:
    config = Config.from_json(path)
    load_model(path.parent)  # what no model can have is an error too
    return config


def _make_tokenizer(folder: pathlib.Path) -> list[pathlib.Path]:
    _link(MICRO, folder, "tokens.txt", "bpe.model")
    return [folder / "tokens.txt", folder / "bpe.model"]


def _read_tokenizer(path: pathlib.Path) -> str:
    tokenizer = load_tokenizer(path.parent)
    return tokenizer.decode(tokenizer.encode("zero one")) + tokenizer.decode(range(tokenizer.vocab_size))


def _make_weights(folder: pathlib.Path) -> list[pathlib.Path]:
    config, model = make_model()
    write_text(folder / "config.json", config.to_json())
    TOKENIZER.save(folder)
    save_weights(folder, model, 1)
    return [folder / "weights.npz"]


def _make_checkpoint(folder: pathlib.Path) -> list[pathlib.Path]:
    config = make_config()
    write_text(folder / "config.json", config.to_json())
    TOKENIZER.save(folder)
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, initial_state(config, np.zeros(24, np.float32), np.ones(24, np.float32))[1])
    checkpoints.wait()
    return sorted(path for path in checkpoints.folder.rglob("*") if path.is_file())


def _read_model(path: pathlib.Path) -> list[np.ndarray]:
    workdir = next(folder for folder in path.parents if (folder / "config.json").exists())
    _, model, _, step = load_model(workdir)
    return [np.asarray(step), *map(np.asarray, jax.tree.leaves(nnx.state(model)))]


def _lost_weights(whole: list[np.ndarray], weights: list[np.ndarray], damage: Damage) -> str:
    same = len(whole) == len(weights) and all(map(np.array_equal, whole, weights))
    return "" if same else "weights were read that were not saved"


def _make_card(folder: pathlib.Path) -> list[pathlib.Path]:
    _link(MICRO, folder, "onnx_int8.onnx", "onnx_int8.json")
    return [folder / "onnx_int8.json", folder / "onnx_int8.onnx"]


def _read_card(path: pathlib.Path) -> np.ndarray:
    stepper, _ = load_artefact(path.with_suffix(".json"))
    stepper.warm_up()
    geometry = stepper.geometry
    return stepper(np.ones((1, geometry.window, geometry.num_mel_bins), np.float32), np.ones(1, np.int32))


def _no_loss(*_: Any) -> str:
    return ""


def _link(source: pathlib.Path, folder: pathlib.Path, *damaged: str) -> None:
    """The files of a folder: those to be damaged are copies."""
    for path in source.iterdir():
        if path.name in damaged:
            shutil.copy(path, folder / path.name)
        elif path.is_file():
            (folder / path.name).symlink_to(path)


def _transcribe(option: str, *more: str) -> list[str]:
    return ["transcribe.py", option, *more]


def _with_workdir(path: pathlib.Path) -> list[str]:
    workdir = next(folder for folder in path.parents if (folder / "config.json").exists())
    return _transcribe(f"--workdir={workdir}", str(CLIP))


def _with_artefact(path: pathlib.Path) -> list[str]:
    return _transcribe(f"--artefact={path.parent}/onnx_int8.json", str(CLIP))


ARTEFACT = f"--artefact={MICRO / 'onnx_int8.onnx'}"
TARGETS = {
    "audio": Target(
        share=0.5,
        is_text=False,
        make=_make_audio,
        read=lambda path: load_audio(path, RATE),
        lost=_lost_audio,
        command=lambda path: _transcribe(ARTEFACT, str(path)),
    ),
    "manifest": Target(
        share=0.14,
        is_text=True,
        make=_make_manifest,
        read=_read_manifest,
        lost=_lost_rows,
        command=lambda path: ["prepare.py", str(path), f"{path}.prepared"],
    ),
    "arpa": Target(
        share=0.1,
        is_text=True,
        make=_make_arpa,
        read=_read_arpa,
        lost=_lost_if_different,
        command=lambda path: _transcribe(ARTEFACT, "--beam-size=4", f"--lm={path}", str(CLIP)),
    ),
    "tokenizer": Target(0.1, False, _make_tokenizer, _read_tokenizer, _lost_if_different, _with_artefact),
    "card": Target(0.06, True, _make_card, _read_card, _no_loss, _with_artefact),
    "config": Target(0.05, True, _make_config, _read_config, _no_loss, _with_workdir),
    "weights": Target(0.03, False, _make_weights, _read_model, _lost_weights, _with_workdir),
    # Its library keeps no checksum of the arrays: changed values can go unseen, those of weights.npz cannot.
    "checkpoint": Target(0.02, False, _make_checkpoint, _read_model, _no_loss, _with_workdir),
}
