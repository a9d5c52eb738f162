"""Measures the errors of the times that a stream gives to words.

A recipe joins clips to strings of words: there the borders of words are known. In other strings of the same kind, the
pauses hold only white noise and are found by it; the method is checked on the known ones. The clips were cut to the
speech by their energy when the pack was made: a border is the place of such a cut.
"""

import pathlib
from collections.abc import Iterable

import numpy as np

from conformer.audio import load_audio
from conformer.data import Utterance, in_splits, load_manifest
from conformer.data.manifest import Recipe
from conformer.streaming import Recognizer, Word
from conformer.streaming.engine import Engine
from conformer.training.checkpoint import load_model

STRINGS = 200  # of a recipe
SPLITS = ("dev", "test")
HOP = 0.005  # seconds
NOISY = 1.45  # times the level of the noise: no more is noise
LEAST_PAUSE, LEAST_WORD = 0.04, 0.08  # seconds; shorter ones are parts of what is around them
PERCENTILES = (50, 90)
Borders = list[tuple[float, float]]


class TimesError(ValueError):
    """Data without known times; the message says which data has them."""


def run(workdir: str | pathlib.Path, source: str | pathlib.Path) -> dict:
    """`bench.py times`: errors of a model's word times on a pack of connected words."""
    config, model, tokenizer, step = load_model(workdir)
    rate = config.features.sample_rate
    utterances = load_manifest(source)
    recipes = [utterance for utterance in utterances if isinstance(utterance.audio, Recipe)]
    if not recipes:
        raise TimesError(f"{source} holds no recipe of strings: name a pack whose words have known borders")
    chosen = [recipes[i] for i in np.linspace(0, len(recipes) - 1, min(STRINGS, len(recipes))).astype(int)]
    recognizer = Recognizer(Engine(config, model), tokenizer)
    known = {utterance.id: borders_of(utterance.audio) for utterance in chosen if isinstance(utterance.audio, Recipe)}
    rows = [measure("recipe, voices of training", chosen, known, recognizer, rate)]
    for split in SPLITS:
        strings = list(in_splits(utterances, (split,)))
        found = {utterance.id: words_between_pauses(utterance.samples(rate), rate) for utterance in strings}
        rows.append(measure(f"{split}, other voices", strings, found, recognizer, rate))
    found = [(words_between_pauses(u.samples(rate), rate), known[u.id]) for u in chosen]
    off = [abs(np.subtract(a, b)) for a, b in found if len(a) == len(b)]
    return {"step": step, "rows": rows, "pauses_off": np.median(np.concatenate(off), axis=0).tolist()}


def borders_of(recipe: Recipe) -> Borders:
    """Returns the start and the end of each clip of a recipe, in seconds."""
    position, borders = recipe.lead, []
    for name, gap in recipe.segments:
        first = position + gap
        position = first + len(load_audio(recipe.folder / name, recipe.sample_rate))
        borders.append((first / recipe.sample_rate, position / recipe.sample_rate))
    return borders


def words_between_pauses(samples: np.ndarray, rate: int) -> Borders:
    """The stretches of a string that are more than the noise of its pauses, in seconds."""
    size = round(HOP * rate)
    hops = samples[: len(samples) // size * size].reshape(-1, size)
    level = np.sqrt(np.square(hops.astype(np.float64)).mean(axis=1))
    noise = np.median(np.sort(level)[: max(3, len(level) // 10)])
    edges = np.flatnonzero(np.diff(level >= NOISY * noise, prepend=False, append=False))
    runs: list[list[int]] = []
    for first, last in edges.reshape(-1, 2).tolist():
        if runs and (first - runs[-1][1]) * HOP < LEAST_PAUSE:
            runs[-1][1] = last
        else:
            runs.append([first, last])
    return [(first * HOP, last * HOP) for first, last in runs if (last - first) * HOP >= LEAST_WORD]


def measure(
    name: str, utterances: Iterable[Utterance], borders: dict[str, Borders], recognizer: Recognizer, rate: int
) -> dict:
    """Errors of starts and ends, in seconds, over the strings whose words are right and whose borders are known."""
    errors: list[np.ndarray] = []
    emitted: list[np.ndarray] = []
    strings = 0
    for utterance in utterances:
        words, tokens = hear(recognizer, utterance.samples(rate))
        known = borders[utterance.id]
        if [word.text for word in words] != utterance.text.split() or len(words) != len(known):
            continue
        strings += 1
        errors.append(np.subtract([word[1:3] for word in words], known))
        emitted += [np.subtract(tokens, [start for start, _ in known])] if len(tokens) == len(known) else []
    every = np.concatenate(errors)
    return {
        "voices": name,
        "strings": strings,
        "words": len(every),
        **{
            border: {f"p{p}": float(np.percentile(abs(every[:, column]), p)) for p in PERCENTILES}
            | {"bias": float(np.median(every[:, column]))}
            for column, border in enumerate(("start", "end"))
        },
        "emission_behind_start": float(np.median(np.concatenate(emitted))) if emitted else None,
    }


def hear(recognizer: Recognizer, samples: np.ndarray) -> tuple[list[Word], list[float]]:
    """The words of a stream, and when its tokens were emitted."""
    recognizer.reset()
    recognizer.accept(samples)
    recognizer.finish()
    return recognizer.words, [token.time for segment in recognizer.segments for token in segment.tokens]


def table(result: dict) -> str:
    """The record for a reader."""
    lines = [f"{'':<28}{'words':>6}  {'starts: 50 %, 90 %, bias':<26}ends (milliseconds)"]
    for row in result["rows"]:
        figures = [
            ", ".join(f"{1000 * row[border][name]:.0f}" for name in ("p50", "p90", "bias"))
            for border in ("start", "end")
        ]
        lines.append(f"{row['voices']:<28}{row['words']:>6}  {figures[0]:<26}{figures[1]}")
    start, end = (1000 * off for off in result["pauses_off"])
    lines.append(f"Pauses found by their noise are {start:.0f} ms off the known starts, {end:.0f} ms off the ends.")
    return "\n".join(lines)
