"""Compares exported artefacts with JAX, and checks the settings of a client.

  python parity.py exported                                     # every artefact: does it still compute what it did?
  python parity.py exported/onnx_int8.json --chunk-size=16      # and is this the client's setting?
  python parity.py exported --workdir=runs/words --json=parity.json     # on the run's test set, with error rates
  python parity.py exported --workdir=runs/words --sherpa       # and sherpa-onnx's client beside our recogniser

With --workdir, writes the figures into the cards and README.md of the folder.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import pathlib
import sys
from typing import Any

from absl import flags

from conformer import record, runtime, system
from conformer.artefacts.card import Card, load_cards
from conformer.artefacts.formats import ExportError
from conformer.artefacts.loading import load_runtimes
from conformer.command import run_command
from conformer.data import load_split
from conformer.export import sherpa
from conformer.export.parity import REFERENCE, Parity
from conformer.export.pipeline import check_difference, reference
from conformer.streaming import Stepper
from conformer.training.checkpoint import load_model

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run that the artefacts come from.")
for _name in ("chunk-size", "num-left-chunks", "look-ahead"):
    flags.DEFINE_integer(_name, None, "What the client is told; must be the artefact's.")
MANIFEST = flags.DEFINE_string("manifest", None, "JSONL manifest, pack or LibriSpeech folder; default: the run's data.")
SPLIT = flags.DEFINE_string("split", "test", "Which split of it; dev,test = both; all = every row.")
SHERPA = flags.DEFINE_bool("sherpa", False, "Also decode in sherpa-onnx's client, one stream and two at once.")
SHERPA_PYTHON = flags.DEFINE_list("sherpa-python", [sys.executable], "Interpreters with the client's versions to try.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(arguments: list[str]) -> None:
    system.use_one_core()
    runtime.set_up()
    if len(arguments) != 2:
        sys.exit("parity.py: name one folder that export.py wrote, or a card in it (see --help)")
    try:
        system.check_writable(JSON.value)
        path = pathlib.Path(arguments[1])
        cards = load_cards(path)
        folder = path if path.is_dir() else path.parent
        for card in cards:
            check_settings(card)
        if WORKDIR.value is None:
            check(cards, folder)
        else:
            measure(cards, folder, pathlib.Path(WORKDIR.value))
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"parity.py: {error}")


def check_settings(card: Card) -> None:
    """Raises ExportError where a client is told something else than the artefact was made for."""
    for name, made in card.geometry.context.items():
        flag = f"--{name.replace('_', '-')}"
        told = flags.FLAGS[name.replace("_", "-")].value
        if told is not None and card.geometry.whole:
            raise ExportError(f"{card.file} takes whole recordings: leave {flag} out")
        if told not in (None, made):
            raise ExportError(
                f"{card.file} was exported with {flag}={made}, a client told {told} would fail: tell it {made}, or "
                f"export again with {flag}={told}"
            )


def check(cards: list[Card], folder: pathlib.Path) -> None:
    """Each artefact on synthetic sound, against the difference noted when it was exported."""
    failed = []
    for card in cards:
        for suffix, artefact in load_runtimes(card.format, folder / card.file, card.geometry, card.features).items():
            difference = check_difference(artefact, folder)
            passed = difference <= 2 * card.check + 1e-3  # runtimes round in an order of their own
            verdict = "" if passed else "  FAILED"
            print(f"{card.file}{suffix}: {difference:.1e} from JAX float32 (when exported: {card.check:.1e}){verdict}")
            failed += [] if passed else [card.file]
    if failed:
        raise ExportError(f"{', '.join(failed)} computes something else than when exported: export again")


def measure(cards: list[Card], folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """Each artefact on real speech; writes the figures to the cards."""
    circumstances: dict[str, Any] = record.describe_run(workdir, packages=("jax", "jaxlib", "onnxruntime"))
    config, model, tokenizer, step = load_model(workdir)
    utterances = load_split(config, MANIFEST.value, SPLIT.value)
    for card in cards:
        if (card.geometry.vocab_size, card.step) != (config.model.vocab_size, step):
            raise ExportError(
                f"{card.file} comes from {card.model} at step {card.step}, {workdir} is at step {step}: export it again"
            )
        if card.geometry != cards[0].geometry:
            raise ExportError(f"{card.file} and {cards[0].file} differ in their sizes: measure them one at a time")
    engine = reference(config, model, cards[0].geometry)
    parity = Parity(engine, tokenizer, utterances)
    rows, runtimes = {REFERENCE: parity.reference}, {}
    for card in cards:
        sizes = {"file_bytes": card.file_bytes, "state_bytes": card.state_bytes, "arena_bytes": card.arena_bytes}
        for suffix, artefact in load_runtimes(card.format, folder / card.file, card.geometry, card.features).items():
            rows[card.name + suffix] = parity.measure(artefact) | sizes
            if not artefact.emulated:
                runtimes[card.name + suffix] = artefact
    seconds = parity.time(runtimes)
    for name, second in seconds.items():
        rows[name] |= {"steps_per_second": 1 / second, "speed": seconds[REFERENCE] / second}
    print("\n".join([HEADER, *(line(name, row) for name, row in rows.items())]), flush=True)
    for card in cards:
        card.measured = rows[card.name]
        card.save(folder)
    clients = compare_clients(engine, tokenizer, cards, folder, utterances) if SHERPA.value else []
    if JSON.value:
        geometry = cards[0].geometry
        figures = ({} if geometry.whole else geometry.context) | {
            "command": " ".join(a for a in circumstances["command"].split() if not a.startswith("--sherpa-python")),
            "model": cards[0].model,
            "step": step,
            "split": SPLIT.value,
            "utterances": len(utterances),
            "rows": rows,
            "sherpa": clients,
        }
        record.write(JSON.value, circumstances | figures)


def compare_clients(engine: Stepper, tokenizer, cards: list[Card], folder: pathlib.Path, utterances) -> list[dict]:
    """sherpa-onnx's client, in each version named, on every artefact that it can load."""
    recordings = [utterance.samples(engine.framing.features.sample_rate) for utterance in utterances]
    own = sherpa.recognise(engine, tokenizer, recordings)
    rows = []
    for python in SHERPA_PYTHON.value:
        for card in (card for card in cards if card.for_sherpa):
            for num_streams in (1, 2):
                agreement = sherpa.compare(card, folder, recordings, own, num_streams=num_streams, python=python)
                rows.append({"artefact": card.name, "num_streams": num_streams} | agreement._asdict())
                print(
                    f"sherpa-onnx {agreement.version}, {card.name}, {num_streams} at once: of {agreement.files} files "
                    f"{agreement.same_text} have the text of our float32 recogniser, {agreement.same_tokens} its "
                    f"tokens, {agreement.same_timestamps} its times; features differ by {agreement.features}",
                    flush=True,
                )
    return rows


HEADER = (
    f"{'':32}{'WER':>8}{'max':>9}{'mean':>9}{'KL':>9}{'argmax':>9}{'steps/s':>9}{'speed':>7}{'size':>10}"
    f"{'state':>10}{'arena':>10}"
)


def line(name: str, row: dict) -> str:
    """A row of the table."""
    text = f"{name:32}{row['wer']:8.2%}"
    if "kl" not in row:
        return f"{text}{row['steps_per_second']:45.0f}"
    speed = f"{row['steps_per_second']:9.0f}{row['speed']:7.2f}" if "speed" in row else f"{'':16}"
    arena = f"{row['arena_bytes'] / 1024:6.0f} KiB" if row["arena_bytes"] else ""
    return (
        f"{text}{row['max_difference']:9.1e}{row['mean_difference']:9.1e}{row['kl']:9.1e}{row['same_argmax']:9.2%}"
        f"{speed}{row['file_bytes'] / 1e6:7.2f} MB"
        f"{row['state_bytes'] / 1024:6.0f} KiB{arena}"
    )


if __name__ == "__main__":
    run_command(main)
