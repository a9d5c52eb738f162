"""Model cards: NAME.json beside each artefact, for programs, and one README.md for all of a folder."""

import dataclasses
import json
import pathlib
from typing import Any

from conformer import system
from conformer.artefacts.formats import FORMATS, STABILISED, ExportError
from conformer.artefacts.geometry import Geometry
from conformer.config import FeatureConfig


@dataclasses.dataclass
class Card:
    """The card of an artefact: its origin, interface, sizes and accuracy."""

    file: str  # its name, in the folder of the card
    format: str
    numerics: str
    model: str  # name of the work directory that it comes from
    step: int  # of training
    num_parameters: int
    geometry: Geometry
    features: FeatureConfig
    inputs: dict[str, list]  # name -> [dtype, shape], in order
    outputs: dict[str, list]
    file_bytes: int
    state_bytes: int
    arena_bytes: int | None  # working memory of the interpreter, where it says so
    check: float  # largest difference of a log-probability from JAX float32 on check.npz
    layouts: dict[str, int]  # how many results of operations have each, for Core ML
    for_sherpa: bool = False
    normalise: str = "basic"  # level of the spelling that it writes (text.normalise)
    sounds: bool = False  # whether units are of sounds, which pronunciations.tsv turns into words
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)  # by parity.py

    @property
    def name(self) -> str:
        """The name of the artefact's file, without its suffix."""
        return artefact_name(self.format, self.numerics, self.geometry.kind)

    def save(self, folder: pathlib.Path) -> None:
        """Writes NAME.json, and README.md anew."""
        system.write_text(folder / f"{self.name}.json", json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        system.write_text(folder / "README.md", readme(load_cards(folder)))


def artefact_name(format: str, numerics: str, kind: str = "step") -> str:
    """Returns the name of an artefact, such as onnx_int8 or onnx_int8_whole."""
    return f"{format}_{numerics}{'' if kind == 'step' else f'_{kind}'}".replace("-", "_")


def load_cards(path: pathlib.Path) -> list[Card]:
    """The cards of a folder, or the one that is named. Raises ExportError where there is none."""
    files = sorted(path.glob("*_*.json")) if path.is_dir() else [path]
    if not files or not all(file.is_file() and file.suffix == ".json" for file in files):
        raise ExportError(
            f"{path} holds no artefact with its card: name a folder that export.py wrote, or a card in it"
        )
    cards = []
    for file in files:
        try:
            values = json.loads(file.read_text())
            geometry, features = Geometry(**values.pop("geometry")), FeatureConfig(**values.pop("features"))
            cards.append(Card(geometry=geometry, features=features, **values))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExportError(f"{file} is no card of this export.py ({error}): export again") from None
    return sorted(cards, key=lambda card: (list(FORMATS).index(card.format), card.name))


def readme(cards: list[Card]) -> str:
    """The folder's model card."""
    first, kinds = cards[0], {card.geometry.kind: _kind(card) for card in reversed(cards)}
    lines = [
        f"# {first.model}: speech recognition",
        "",
        f"A Conformer with {first.num_parameters:,} parameters and {first.geometry.vocab_size} units (`tokens.txt`, "
        f"blank `<blk>`), after {first.step} training steps."
        + (" Its units are sounds: `pronunciations.tsv` says which words sound so." if first.sounds else ""),
        *(kinds[kind] for kind in dict.fromkeys(card.geometry.kind for card in cards)),
        "",
        "| file | numerics | size | state | working memory | WER | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for card in cards:
        wer = f"{card.measured['wer']:.2%}" if "wer" in card.measured else "not measured"
        arena = f"{card.arena_bytes / 1024:.0f} KiB" if card.arena_bytes else ""
        difference = card.measured.get("max_difference", card.check)
        lines.append(
            f"| `{card.file}` | {card.numerics} | {card.file_bytes / 1e6:.2f} MB | {card.state_bytes / 1024:.0f} KiB | "
            f"{arena} | {wer} | {difference:.1e} |"
        )
    lines += [
        "",
        "The difference is that of a log-probability from JAX float32, over "
        + ("the streams that WER is measured on." if first.measured else "synthetic sound (`check.npz`).")
        + " Check an artefact, and what a client is told, at the root of the project, with this folder for FOLDER:",
        "",
        "```",
        *(f"python parity.py FOLDER/{card.name}.json{_client_flags(card.geometry)}" for card in cards),
        "```",
        *_arithmetic(cards),
        "",
        "## Features",
        "",
        f"{_features(first.features)}. {_normalisation(first.features)}",
        "",
        "## Interfaces",
    ]
    for card in cards:
        by_position = card.format == "onnx" and not card.geometry.whole
        lines += ["", f"`{card.file}`" + (", bound by position:" if by_position else ":"), ""]
        for title, tensors in (("in", card.inputs), ("out", card.outputs)):
            lines += [f"- {title}: " + ", ".join(f"`{name}` {t} {list(s)}" for name, (t, s) in tensors.items())]
        if card.geometry.positions == "absolute" and "offset" in card.inputs:
            lines += ["- `offset`: the encoder frames of the stream before the chunk"]
        if card.layouts:
            lines += ["- layouts: " + ", ".join(f"{count} {layout}" for layout, count in card.layouts.items())]
            lines += ["- written and checked without macOS: placement and speed are not verified"]
    if sherpa := next((card for card in cards if card.for_sherpa), None):
        lines += ["", "## With sherpa-onnx", "", *_sherpa_usage(sherpa)]
    return "\n".join(lines) + "\n"


def _arithmetic(cards: list[Card]) -> list[str]:
    """Lists the artefacts for hardware that rounds every operation to float16, and why the others do not suit it."""
    stabilised, native, lines = [], [], []
    for card in cards:
        kind = stabilised if card.numerics in STABILISED.get(card.format, ()) else native
        kind.append(f"`{card.file}`")
    if stabilised:
        lines += [
            f"- Stabilised: {', '.join(stabilised)}. LayerNorm divides each row by scales of its own before it adds "
            "up, and softmax subtracts the largest score, so that neither overflows where hardware rounds every "
            "operation to float16."
        ]
    if native:
        lines += [
            f"- Native: {', '.join(native)}. The runtime's own norms and softmax, faster and as exact where sums "
            "are kept in float32 or in integers; rounded to float16 at every operation, a large residual stream would "
            "overflow in them."
        ]
    return ["", "## Arithmetic", "", *lines]


def _kind(card: Card) -> str:
    geometry = card.geometry
    if geometry.whole:
        longest = geometry.framing(card.features).longest
        padded = (
            f" The recording begins after {geometry.lengths.lead} frames of zeros; `heard` is 1 for each feature frame "
            "inside it and 0 for others."
            if geometry.lengths.lead
            else ""
        )
        return (
            f"`*_whole` takes a whole recording of at most {longest:.1f} s and keeps no state: {geometry.window} "
            f"feature frames in, zeros behind the last, {geometry.chunk_size} encoder frames out.{padded} `inside` is "
            "1 for each encoder frame of the recording and 0 for others, whose outputs mean nothing."
        )
    wait = geometry.shift * card.features.frame_shift_ms
    ahead = (
        f" They see the {geometry.look_ahead} encoder frames after them, which the next step gives."
        if geometry.look_ahead
        else ""
    )
    return (
        f"A file is one step of a stream: {geometry.window} feature frames in, {geometry.chunk_size} encoder frames "
        f"({wait:.0f} ms) out.{ahead} The next window starts {geometry.shift} feature frames later. A state of "
        f"{geometry.num_left_chunks} chunks is carried from step to step, zeros at the start."
    )


def _client_flags(geometry: Geometry) -> str:
    if geometry.whole:
        return ""
    ahead = f" --look-ahead={geometry.look_ahead}" if geometry.look_ahead else ""
    return f" --chunk-size={geometry.chunk_size} --num-left-chunks={geometry.num_left_chunks}{ahead}"


def _normalisation(features: FeatureConfig) -> str:
    if not features.normalise:
        return "Not normalised: the artefact does that itself."
    return (
        "The host normalises each bin over the frames of the recording: (x - mean) / (deviation + 1e-5), the deviation "
        "unbiased."
    )


def _features(features: FeatureConfig) -> str:
    if features.kind == "nemo":
        return (
            f"NeMo's log-mel filterbank (Slaney): {features.num_mel_bins} bins from {features.low_freq:g} to "
            f"{features.high_freq:g} Hz, {features.frame_length_ms:g} ms windows ({features.window}) every "
            f"{features.frame_shift_ms:g} ms, audio of {features.sample_rate} Hz in [-1, 1), pre-emphasis "
            f"{features.preemphasis:g}, frames centred, zeros outside the audio, 2^-24 added before the logarithm"
        )
    frames = "centred (snip_edges=false)" if features.kind == "kaldi" else "inside the audio alone (snip_edges=true)"
    return (
        f"Kaldi's log-mel filterbank: {features.num_mel_bins} bins from {features.low_freq:g} to "
        f"{features.high_freq:g} Hz, {features.frame_length_ms:g} ms windows (povey) every "
        f"{features.frame_shift_ms:g} ms, audio of {features.sample_rate} Hz on the int16 scale, pre-emphasis "
        f"{features.preemphasis:g}, DC removed, "
        f"frames {frames}, no dither"
    )


def _sherpa_usage(card: Card) -> list[str]:
    chunk, left = card.geometry.chunk_size, card.geometry.num_left_chunks
    return [
        "```",
        f"sherpa-onnx --tokens=tokens.txt --wenet-ctc-model={card.file} --wenet-ctc-chunk-size={chunk} "
        f"--wenet-ctc-num-left-chunks={left} recording.wav",
        "```",
        "",
        "```python",
        f'sherpa_onnx.OnlineRecognizer.from_wenet_ctc("tokens.txt", "{card.file}", chunk_size={chunk}, '
        f"num_left_chunks={left})",
        "```",
        "",
        "The client must be told the same chunk size and left context. It decodes whole windows alone: end a stream "
        "with 0.8 s of silence.",
    ]
