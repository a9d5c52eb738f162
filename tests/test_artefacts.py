"""Exported models recognise as JAX does, from the command and in Python, and what JAX is not needed for loads none."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import soundfile

from conformer.artefacts.formats import FORMATS, ExportError
from conformer.artefacts.loading import load_artefact
from conformer.data import Utterance, load_manifest
from conformer.decode.greedy import GreedyDecoder
from conformer.decode.prefix_beam import PrefixBeamDecoder
from conformer.streaming import EndpointConfig, Recognizer
from conformer.streaming.engine import Engine
from conformer.training.checkpoint import load_model

ROOT = pathlib.Path(__file__).parents[1]
RELEASED = ROOT / "models" / "words_micro"
RATE = 16_000


def run(*command, jax: bool = True) -> tuple[int, str, list[str]]:
    """Exit status, standard output, and the lines on standard error; `jax=False`: importing it is an error."""
    blocked = "import sys; sys.modules |= dict.fromkeys(('jax', 'jaxlib', 'flax'))"
    script = f"{blocked}; import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    start = [sys.executable] if jax else [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*start, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()


def needs(format: str) -> None:
    for package in FORMATS[format].interpreters:
        pytest.importorskip(package)


@pytest.fixture(scope="session")
def utterances(speech_data) -> list[Utterance]:
    found = [u for u in load_manifest(speech_data / "connected_words_16k") if u.split == "test"]
    return found[::15]


def transcripts(stepper, tokenizer, utterances, **options) -> list:
    recognizer, segments = Recognizer(stepper, tokenizer, endpoint=EndpointConfig(), **options), []
    for utterance in utterances:
        recognizer.reset()
        recognizer.accept(utterance.samples(RATE))
        recognizer.finish()
        segments.append(recognizer.take_segments())
    return segments


@pytest.fixture(scope="session")
def expected(utterances):
    """Returns JAX's transcripts of the utterances, greedy and with a beam."""
    config, model, tokenizer, _ = load_model(RELEASED)
    engine = Engine(config, model)
    return {decoder: transcripts(engine, tokenizer, utterances, decoder=decoder) for decoder in (GreedyDecoder, beam)}


def beam() -> PrefixBeamDecoder:
    return PrefixBeamDecoder(4)


@pytest.mark.parametrize(
    "name, format",
    [
        ("onnx_float32.onnx", "onnx"),
        ("onnx_float32.json", "onnx"),
        ("onnx_int8.onnx", "onnx"),
        ("litert_int8.tflite", "litert"),
        ("tflite_micro_int16x8.tflite", "tflite-micro"),
    ],
)
def test_an_artefact_gives_the_text_that_jax_gives(name, format, utterances, expected):
    needs(format)
    stepper, tokenizer = load_artefact(RELEASED / name)
    stepper.warm_up()
    found = transcripts(stepper, tokenizer, utterances)
    if "float32" in name:  # times and all
        assert found == expected[GreedyDecoder]
        assert transcripts(stepper, tokenizer, utterances, decoder=beam) == expected[beam]
    assert [[s.text for s in segments] for segments in found] == [
        [s.text for s in ss] for ss in expected[GreedyDecoder]
    ]


def test_the_command_runs_an_artefact_without_jax_in_every_form_of_output(utterances, expected, tmp_path):
    needs("onnx")
    audio, results = tmp_path / "speech.wav", tmp_path / "results.json"
    soundfile.write(audio, utterances[0].samples(RATE), RATE, subtype="PCM_16")
    flags = (f"--artefact={RELEASED / 'onnx_float32.onnx'}", f"--json={results}", "--output=srt", "--one-core")
    status, out, _ = run("transcribe.py", *flags, audio, jax=False)
    (segment,) = expected[GreedyDecoder][0]
    assert status == 0 and out.splitlines()[0] == "1" and segment.text in out.splitlines()
    (record,) = json.loads(results.read_text())
    assert record["text"] == segment.text and len(record["words"]) == len(segment.words)
    flags = (f"--artefact={RELEASED / 'onnx_float32.json'}", "--beam-size=4", "--hotwords=go left")
    status, out, _ = run("transcribe.py", *flags, audio, jax=False)
    assert status == 0 and f"final  {segment.text}" in out


@pytest.mark.parametrize(
    "flag, remedy",
    {
        f"--workdir={RELEASED}": "name one of the two",
        "--numerics=int8": "export.py --numerics gave it",
        "--execution=channels_first": "leave it out",
        "--chunk-size=8": "export it again with another",
        "--num-left-chunks=2": "export it again with others",
        "--example": "name a file, or give --workdir",
    }.items(),
)
def test_flags_that_an_artefact_cannot_follow_are_named_with_the_remedy(flag, remedy):
    status, _, err = run("transcribe.py", f"--artefact={RELEASED / 'onnx_int8.onnx'}", flag, "x.wav", jax=False)
    assert status == 1 and len(err) == 1
    name = flag.partition("=")[0]
    assert err[0].startswith(f"transcribe.py: {name} does not go with --artefact: ") and remedy in err[0]


def test_artefacts_that_cannot_be_run_are_named_with_the_remedy(tmp_path):
    needs("onnx")
    for name in ("onnx_int8.onnx", "onnx_int8.json", "tokens.txt", "bpe.model"):
        shutil.copy(RELEASED / name, tmp_path)
    artefact, card = tmp_path / "onnx_int8.onnx", tmp_path / "onnx_int8.json"
    load_artefact(artefact)
    for nothing in (tmp_path, tmp_path / "absent.onnx"):
        with pytest.raises(ExportError, match=f"{nothing} is no artefact: name one that export.py wrote"):
            load_artefact(nothing)
    artefact.write_bytes(artefact.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"onnx_int8\.onnx cannot be loaded \(.*\): export again"):
        load_artefact(artefact)
    values = json.loads(card.read_text())
    del values["geometry"]["right_context"]
    card.write_text(json.dumps(values))
    with pytest.raises(ExportError, match=r"onnx_int8\.json .*right_context.*: export again"):
        load_artefact(artefact)
    artefact.unlink()
    with pytest.raises(ExportError, match="is no artefact"):
        load_artefact(artefact)


# ---------------------------------------------------------------------- no JAX


def test_what_needs_no_jax_loads_none():
    """Each module in turn, so that the first that does is named."""
    script = """
import importlib, pkgutil, sys
modules = ["conformer." + name for name in ("config", "policy", "tokenizer", "audio", "filterbank", "runtime")]
for room in ("decode", "streaming", "artefacts"):
    package = importlib.import_module(f"conformer.{room}")
    modules += [f"conformer.{room}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
for name in modules:
    own = ("conformer.streaming.engine", "conformer.streaming.whole", "conformer.artefacts.stablehlo")
    if name not in (*own, *sys.argv[1:]):
        importlib.import_module(name)
        assert not {"jax", "jaxlib", "flax"} & sys.modules.keys(), name
assert len(modules) > 20
"""
    absent = [f.module for f in FORMATS.values() if not all(map(importlib.util.find_spec, f.interpreters))]
    skipped = [
        f"conformer.artefacts.{module}" for module in [*absent, *(["mil_interpreter"] if "coreml" in absent else [])]
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *skipped], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
