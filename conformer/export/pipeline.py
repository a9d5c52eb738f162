"""Exports a work directory as an artefact with its card: the steps that all formats share."""

import pathlib

import numpy as np

from conformer import system
from conformer.artefacts.card import Card, artefact_name, load_cards
from conformer.artefacts.formats import FORMATS, ExportError
from conformer.artefacts.geometry import Geometry
from conformer.artefacts.loading import load_runtimes
from conformer.artefacts.runtime import Runtime
from conformer.audio import AudioError
from conformer.config import Config
from conformer.cost import num_parameters
from conformer.data import DataError, in_splits, load_utterances
from conformer.decode.confidence import Confidence
from conformer.decode.search import Search, stored
from conformer.export.formats import Task, backend, check_request, not_for_sherpa
from conformer.model import ConformerCTC
from conformer.model.subsampling import lengths_of
from conformer.streaming import Framing, Stepper, windows_of
from conformer.streaming.engine import Engine
from conformer.streaming.whole import WholeEngine
from conformer.streaming.windows import Window
from conformer.tokenizer import SoundTokenizer, Tokenizer
from conformer.training.checkpoint import load_model, save_weights

CHECK_FILE, WHOLE_CHECK_FILE = "check.npz", "check_whole.npz"
CHECK_SECONDS = 4.0
CALIBRATION_UTTERANCES = 48  # a few minutes of speech: ranges hardly grow with more


def export(
    workdir: pathlib.Path,
    format: str,
    numerics: str | None,
    chunk_size: int,
    num_left_chunks: int,
    out: pathlib.Path,
    max_seconds: float | None = None,
    look_ahead: int = 0,
) -> Card:
    """Writes a trained model, its tokens and its card to the folder `out`.

    The artefact is a streaming step. With `max_seconds`, it takes whole recordings of at most that length, and no
    chunks. Raises ExportError, before any work, for what the format cannot hold.
    """
    config = Config.from_json(workdir / "config.json")
    numerics = numerics or FORMATS[format].numerics[0]
    check_request(config, format, numerics, chunk_size, num_left_chunks, max_seconds, look_ahead)
    config, model, tokenizer, step = load_model(workdir)
    if max_seconds is None:
        geometry = Geometry.of(config, model, chunk_size, num_left_chunks, look_ahead)
    else:
        framing = Framing.of_whole(config.features, lengths_of(config.model), max_seconds)
        geometry = Geometry.of(config, model, framing.chunk_size, 0, kind="whole")
    name, of = artefact_name(format, numerics, geometry.kind), workdir.absolute().name
    _check_neighbours(out, name, of, geometry)
    framing = geometry.framing(config.features)
    calibration = _calibration(config, framing) if numerics in FORMATS[format].calibrated else []
    out.mkdir(parents=True, exist_ok=True)
    _copy(workdir, tokenizer, out)
    sounds = isinstance(tokenizer, SoundTokenizer)
    path = out / f"{name}{FORMATS[format].suffix}"
    interface = backend(format).export(Task(config, model, geometry, numerics, path, calibration))
    _write_check(reference(config, model, geometry), out)
    runtime = load_runtimes(format, path, geometry, config.features)[""]
    card = Card(
        file=path.name,
        format=format,
        numerics=numerics,
        model=of,
        step=step,
        num_parameters=num_parameters(config),
        geometry=geometry,
        features=config.features,
        inputs=interface.inputs,
        outputs=interface.outputs,
        file_bytes=size_of(path),
        state_bytes=runtime.state_bytes,
        arena_bytes=runtime.arena_bytes,
        layouts=runtime.layouts,
        check=check_difference(runtime, out),
        normalise=config.text.normalise,
        for_sherpa=format == "onnx" and not (geometry.whole or sounds) and not_for_sherpa(config) is None,
        sounds=sounds,
    )
    card.save(out)
    return card


def _check_neighbours(out: pathlib.Path, name: str, model: str, geometry: Geometry) -> None:
    """Raises ExportError where a folder holds other exports that would lose their tokenizer or their check to this."""
    for file in sorted(out.glob("*_*.json")):
        if file.stem == name:
            continue  # it is replaced
        (card,) = load_cards(file)
        if card.model != model or (card.geometry.kind == geometry.kind and card.geometry != geometry):
            sizes = ", ".join(f"{key}={value}" for key, value in card.geometry.context.items())
            raise ExportError(
                f"{out} holds {card.file} of {card.model} with {sizes}: exports that share a folder have one model and "
                "the same sizes; name another folder, or remove it"
            )


def reference(config: Config, model: ConformerCTC, geometry: Geometry) -> Stepper:
    """Returns the model in JAX float32, with the windows of an artefact, for the artefact to be compared with."""
    if geometry.whole:
        return WholeEngine(model, geometry.framing(config.features))
    return Engine(config, model, **geometry.context)


def release(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Makes the folder `out` a work directory too: configuration, tokenizer and weights, without checkpoints."""
    config, model, tokenizer, step = load_model(workdir)
    out.mkdir(parents=True, exist_ok=True)
    _copy(workdir, tokenizer, out)
    system.write_text(out / "config.json", config.to_json())
    save_weights(out, model, step)


def _copy(workdir: pathlib.Path, tokenizer: Tokenizer, out: pathlib.Path) -> None:
    """Copies tokenizer, calibration and search settings to `out`; the language model stays where it is."""
    tokenizer.save(out)
    Confidence.load(workdir).save(out)
    if settings := stored(workdir):
        Search(**settings).save(out)


def check_difference(runtime: Runtime, folder: pathlib.Path) -> float:
    """The largest difference of a log-probability from those of JAX float32 in the folder's check.npz."""
    path = folder / check_file(runtime.framing)
    try:
        stored = np.load(path)
        windows, expected = stored["windows"], stored["log_probs"]
        counts = stored["num_frames"] if runtime.framing.whole else np.full(len(windows), runtime.framing.window_frames)
    except (OSError, ValueError, KeyError):
        raise ExportError(f"{path} cannot be read: export again") from None
    if windows.shape[1] != runtime.framing.window:
        raise ExportError(f"{path} is that of an export of other sizes: export each to a folder of its own")
    runtime.reset()
    differences = [
        np.abs(runtime(window[None], np.full(1, count, np.int32))[0, :count] - log_probs[:count]).max()
        for window, count, log_probs in zip(windows, counts, expected, strict=True)
    ]
    return float(max(differences))


def check_file(framing: Framing) -> str:
    """The name of the file that a folder's artefacts of a kind are checked with."""
    return WHOLE_CHECK_FILE if framing.whole else CHECK_FILE


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def check_windows(framing: Framing) -> np.ndarray:
    """Features of synthetic sound in whole chunks, (chunks, window, mel): the same for ever."""
    windows = windows_of(framing, _check_samples(framing))
    return np.stack([window.features for window in windows if window.num_frames == framing.window_frames])


def whole_check_windows(framing: Framing) -> list[Window]:
    """The same sound as a whole, and the first third of it."""
    samples = _check_samples(framing)[: int(framing.longest * framing.features.sample_rate)]
    return [window for part in (samples, samples[: len(samples) // 3]) for window in windows_of(framing, part)]


def _check_samples(framing: Framing) -> np.ndarray:
    rng = np.random.default_rng(0)
    rate = framing.features.sample_rate
    seconds = np.arange(int(CHECK_SECONDS * rate)) / rate
    # A few gliding tones in noise: something to hear in every filter.
    glides = sum(np.sin(2 * np.pi * (f * seconds + 40 * np.sin(3 * seconds))) for f in (150, 400, 900, 2_000))
    return (0.05 * glides + 0.02 * rng.standard_normal(len(seconds))).astype(np.float32)


def _write_check(engine: Stepper, out: pathlib.Path) -> None:
    """Writes the check: synthetic sound, and what JAX float32 makes of it."""
    if engine.framing.whole:
        features, counts, _ = zip(*whole_check_windows(engine.framing), strict=True)
        num_frames = np.array(counts, np.int32)
        log_probs = [engine(window[None], num_frames[row : row + 1])[0] for row, window in enumerate(features)]
        arrays = {"windows": np.stack(features), "num_frames": num_frames, "log_probs": np.stack(log_probs)}
        np.savez_compressed(out / WHOLE_CHECK_FILE, **arrays)
        return
    windows = check_windows(engine.framing)
    num_frames = np.full(1, engine.framing.window_frames, np.int32)
    log_probs = [engine(window[None], num_frames)[0] for window in windows]
    np.savez(out / CHECK_FILE, windows=windows, log_probs=np.stack(log_probs))


def _calibration(config: Config, framing: Framing) -> list[np.ndarray]:
    """Windows of some utterances of the splits that the model was trained on."""
    try:
        utterances = in_splits(load_utterances(config), config.data.train_splits)
        chosen = [utterances[i] for i in np.linspace(0, len(utterances) - 1, CALIBRATION_UTTERANCES).astype(int)]
        samples = [utterance.samples(config.features.sample_rate) for utterance in chosen]
    except (DataError, AudioError, OSError, IndexError) as error:
        raise ExportError(
            f"these numerics are calibrated on the run's training data, which cannot be read: {error}"
        ) from None
    return [np.stack([w.features for w in windows_of(framing, s)]) for s in samples]
