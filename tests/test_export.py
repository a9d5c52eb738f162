"""Exports of a tiny model with random weights, run in the runtimes that they are for."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import micro
from conformer.artefacts import formats
from conformer.artefacts.card import load_cards
from conformer.artefacts.formats import FORMATS, ExportError
from conformer.artefacts.loading import load_runtimes
from conformer.checkpoints.convert import read_checkpoint
from conformer.config import Config, FeatureConfig, ModelConfig, TrainConfig
from conformer.export import pipeline
from conformer.export.formats import check_request, not_for_sherpa
from conformer.filterbank import StreamingLogMel
from conformer.model import ConformerCTC
from conformer.streaming import log_probs_of, windows_of
from conformer.tokenizer import CharTokenizer, load_tokenizer
from conformer.training.checkpoint import load_model, save_weights
from tests.small_model import random_model

ROOT = pathlib.Path(__file__).parents[1]
CHUNK_SIZE, NUM_LEFT_CHUNKS = 8, 2
LOOK_AHEAD = 4  # of a chunk of 4, with as much left context


@functools.cache
def make_model() -> tuple[Config, ConformerCTC]:
    """Makes a model with sherpa-onnx's front end, whose outputs vary from frame to frame."""
    sizes: dict[str, Any] = dict(
        subsampling_channels=4, encoder_dim=16, num_layers=2, num_heads=2, feed_forward_dim=24, kernel_size=5
    )
    config = Config(
        model=ModelConfig(**sizes, positions="learned", vocab_size=12), train=TrainConfig(chunk_sizes=(0, CHUNK_SIZE))
    )
    model = random_model(config, seed=3, vectors=0.2)
    model.feature_mean[...] = jnp.full(80, 10.0)
    model.feature_scale[...] = jnp.full(80, 0.3)
    model.head.kernel[...] *= 4.0
    return config, model


@pytest.fixture(scope="session")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A released model."""
    folder = tmp_path_factory.mktemp("model")
    config, model = make_model()
    CharTokenizer(["<blk>", "▁", *"abcdefghij"]).save(folder)
    (folder / "config.json").write_text(config.to_json())
    save_weights(folder, model, 7)
    return folder


@pytest.fixture(scope="session")
def exported(workdir, tmp_path_factory):
    """export(format, numerics, look_ahead=0) -> card and folder; each is made once."""
    folders = {look_ahead: tmp_path_factory.mktemp("exported") for look_ahead in (0, LOOK_AHEAD)}

    @functools.cache
    def export(format: str, numerics: str, look_ahead: int = 0):
        for package in FORMATS[format].interpreters + FORMATS[format].converters:
            pytest.importorskip(package)
        sizes = (CHUNK_SIZE - look_ahead, CHUNK_SIZE * NUM_LEFT_CHUNKS // (CHUNK_SIZE - look_ahead))
        folder = folders[look_ahead]
        return pipeline.export(workdir, format, numerics, *sizes, folder, look_ahead=look_ahead), folder

    return export


@pytest.fixture(autouse=True)
def calibration(monkeypatch):
    """The sound of the check in the place of the training data."""
    monkeypatch.setattr(pipeline, "_calibration", lambda config, framing: [pipeline.check_windows(framing)])


FLOAT32 = [(format, "float32") for format in ("onnx", "litert", "jax", "tflite-micro")]
NARROW = [
    ("onnx", "float16"),
    ("onnx", "float16-stable"),
    ("onnx", "int8"),
    ("onnx", "int8-static"),
    ("coreml", "float16"),
    ("litert", "float16-stable"),
    ("litert", "int8"),
    ("tflite-micro", "int16x8"),
    ("tflite-micro", "int8"),
]


OLD_RUNTIME = """
import sys

import numpy as np
import onnxruntime as ort

path, inputs, found = sys.argv[1:]
assert ort.__version__.startswith("1.17."), f"version {ort.__version__} is not 1.17"
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    np.save(f"{found}/{level}.npy", session.run(None, dict(np.load(inputs)))[0][0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["float32", "float16", "float16-stable", "int8"])
def test_an_old_onnx_runtime_computes_the_same(exported, tmp_path, numerics):
    """Version 1.17. The plain float16 is held to no optimiser: that of shipped models goes wrong with one."""
    python = os.environ.get("ONNXRUNTIME_1_17")
    if not python:
        pytest.skip("ONNXRUNTIME_1_17 names no Python interpreter that has onnxruntime 1.17")
    card, folder = exported("onnx", numerics)
    runtime: Any = load_runtimes("onnx", folder / card.file, card.geometry, card.features)[""]
    window = np.load(folder / pipeline.CHECK_FILE)["windows"][0]
    # The first chunk of a stream: the keys before it are masked.
    np.savez(tmp_path / "inputs.npz", **runtime.inputs(window, card.geometry.valid_keys(0, CHUNK_SIZE)))
    arguments = [folder / card.file, tmp_path / "inputs.npz", tmp_path]
    subprocess.run([python, "-c", OLD_RUNTIME, *arguments], check=True)
    expected = runtime(window[None], np.array([CHUNK_SIZE]))[0]
    errors = {path.stem: np.abs(np.load(path) - expected).max() for path in tmp_path.glob("*.npy")}
    assert len(errors) == 4
    levels = ["ORT_DISABLE_ALL"] if numerics == "float16" else list(errors)
    assert max(errors[level] for level in levels) < 0.05, errors


@pytest.mark.slow_but("onnx-float32-0", "onnx-float32-4", "litert-int8-0", "tflite-micro-int8-4")
@pytest.mark.parametrize(
    "format, numerics, look_ahead",
    [(*kind, 0) for kind in FLOAT32 + NARROW]
    + [(*kind, LOOK_AHEAD) for kind in [*FLOAT32, ("onnx", "int8-static"), ("tflite-micro", "int8")]],
)
def test_every_artefact_computes_what_jax_does_over_chained_chunks(exported, format, numerics, look_ahead):
    card, folder = exported(format, numerics, look_ahead)
    stored = np.load(folder / pipeline.CHECK_FILE)
    for runtime in load_runtimes(format, folder / card.file, card.geometry, card.features).values():
        results = np.stack([runtime(w[None], np.array([CHUNK_SIZE]))[0] for w in stored["windows"]])
        assert results.shape[1:] == (CHUNK_SIZE - look_ahead, card.geometry.vocab_size)
        assert len(results) > card.geometry.num_left_chunks + 1  # a window leaves the left context
        np.testing.assert_allclose(np.exp(results).sum(-1), 1, atol=2e-2)
        if numerics == "float32":
            assert np.abs(results - stored["log_probs"]).max() < 1e-3
        else:
            expected = stored["log_probs"]
            divergence = (np.exp(expected) * (expected - results)).sum(-1).mean()
            average = np.log(np.exp(expected).mean((0, 1)))
            ignorant = (np.exp(expected) * (expected - average)).sum(-1).mean()  # of a model that hears nothing
            assert divergence < ignorant / 20
        runtime.reset()
        again = runtime(stored["windows"][:1], np.array([CHUNK_SIZE]))
        np.testing.assert_array_equal(again[0], results[0])


@pytest.mark.slow_but("onnx")
@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_a_look_ahead_ends_where_the_recording_ends(workdir, exported, format):
    card, folder = exported(format, "float32", LOOK_AHEAD)
    config, model, _, _ = load_model(workdir)
    engine = pipeline.reference(config, model, card.geometry)
    runtime = load_runtimes(format, folder / card.file, card.geometry, card.features)[""]
    for extra in range(CHUNK_SIZE):  # encoder frames
        windows = list(windows_of(engine.framing, sound(1.0 + 0.04 * extra, extra)))
        np.testing.assert_allclose(log_probs_of(runtime, windows), log_probs_of(engine, windows), atol=1e-3)


@pytest.mark.parametrize("numerics", FORMATS["onnx"].numerics)
def test_onnx_files_are_valid_as_saved_and_load_in_old_readers(exported, numerics):
    card, folder = exported("onnx", numerics)
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(str(folder / card.file), full_check=True)
    graph = onnx.load(folder / card.file)
    assert graph.ir_version == 8
    assert {(entry.domain, entry.version) for entry in graph.opset_import} <= {("", 18), ("com.microsoft", 1)}
    constants = {constant.name for constant in graph.graph.initializer}
    alone = [node for node in graph.graph.node if set(node.input) <= constants]
    assert not [node.name for node in alone if node.op_type != "DequantizeLinear"]  # of weights, in int8-static
    assert constants <= {name for node in graph.graph.node for name in node.input}


def test_narrow_artefacts_are_smaller_and_micro_ones_declare_arena_and_integers(exported):
    full, folder = exported("tflite-micro", "float32")
    eight, _ = exported("tflite-micro", "int8")
    sixteen, _ = exported("tflite-micro", "int16x8")
    assert eight.state_bytes * 4 == sixteen.state_bytes * 2 == full.state_bytes
    assert eight.arena_bytes < sixteen.arena_bytes
    assert {dtype for dtype, _ in eight.inputs.values()} == {"int8"}
    assert {dtype for dtype, _ in sixteen.inputs.values()} == {"int16"}
    header, source = ((folder / eight.file).with_suffix(suffix).read_text() for suffix in (".h", ".cc"))
    data = np.array(source.split("{")[1].split("}")[0].split(","), np.uint8)
    assert data.tobytes() == (folder / eight.file).read_bytes()
    assert f"ARENA_BYTES = {eight.arena_bytes} }};" in header


@pytest.mark.parametrize("numerics", ["int8", "int16x8"])
def test_two_activations_meet_in_int8_alone_which_is_all_that_ethos_u55_multiplies(exported, numerics):
    """Vela's rule for BATCH_MATMUL and for FULLY_CONNECTED without constant weights."""
    card, folder = exported("tflite-micro", numerics)
    from ai_edge_litert import schema_py_generated as schema  # pyright: ignore[reportMissingImports]

    kinds, types = schema.BuiltinOperator, schema.TensorType
    for path in (folder / card.file, ROOT / "models" / "words_micro" / card.file):
        model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        graph, products = model.subgraphs[0], []
        for operator in graph.operators:
            kind = model.operatorCodes[operator.opcodeIndex].builtinCode
            factors = [graph.tensors[index] for index in operator.inputs[:2]]
            constant = model.buffers[factors[-1].buffer].data is not None
            if kind == kinds.BATCH_MATMUL or (kind == kinds.FULLY_CONNECTED and not constant):
                products.append({factor.type for factor in factors} | {graph.tensors[operator.outputs[0]].type})
        assert products and all(found == {types.INT8} for found in products)


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["int8", "int16x8"])
def test_vela_places_every_operator(exported, numerics):
    card, folder = exported("tflite-micro", numerics)
    try:
        vela = micro.find_vela()
    except micro.VelaError as error:
        pytest.skip(str(error))
    for npu in ("ethos-u55-128", "ethos-u85-256"):
        report = micro.compile_for(vela, folder / card.file, npu)
        assert report["cpu_operators"] == 0 and not report["cpu_operator_names"] and report["operators"] > 100


@pytest.mark.slow
def test_core_ml_is_told_where_a_chunk_of_absolute_positions_lies(golden, tmp_path):
    """Runs the saved package in its runtime; without the place the difference would be 9e-2."""
    pytest.importorskip("coremltools")
    read_checkpoint(golden / "wenet_u2pp_conformer").save(tmp_path)
    card = pipeline.export(tmp_path, "coreml", "float16", 16, 4, tmp_path / "out")
    assert card.check < 2e-2
    assert "`offset`: the encoder frames" in (tmp_path / "out" / "README.md").read_text()


def test_core_ml_computes_in_the_engines_layout_and_normalises_what_would_overflow(exported):
    card, _ = exported("coreml", "float16")
    assert set(card.layouts) == {"(B, C, 1, S)", "(B, C, H, S)"}  # rank four throughout; H in the front end alone
    assert card.layouts["(B, C, 1, S)"] > 0.9 * sum(card.layouts.values())

    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    from conformer.artefacts.mil_interpreter import MilInterpreter
    from conformer.model.layouts.coreml import CoreMl
    from conformer.model.norm import LayerNorm

    x = np.random.default_rng(0).standard_normal((1, 512, 1, 4)).astype(np.float16)
    x *= np.array([1e-2, 1.0, 100.0, 5_000.0], np.float16)  # the last two have squares that add up beyond float16
    x[..., 3] += np.float16(9_000)  # and the last one has a sum beyond it

    @mb.program(input_specs=[mb.TensorSpec(x.shape)], opset_version=ct.target.iOS18)
    def program(x):
        cast: Any = mb.cast  # pyright: ignore[reportAttributeAccessIssue]
        return cast(x=CoreMl().norm(LayerNorm(512, ModelConfig()), cast(x=x, dtype="fp16")), dtype="fp32", name="y")

    result = MilInterpreter(program)({"x": x.astype(np.float32)}, {})["y"]
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(result, expected, rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------ sherpa-onnx


def sound(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    frequency = np.repeat(rng.uniform(100, 4_000, int(seconds * 16) + 1), 1_000)[: int(seconds * 16_000)]
    tone = 0.3 * np.sin(2 * np.pi * np.cumsum(frequency) / 16_000)
    return (tone + 0.05 * rng.standard_normal(len(tone))).astype(np.float32)


@pytest.mark.parametrize("look_ahead", [0, LOOK_AHEAD])
def test_the_stock_client_hears_what_our_recogniser_hears_in_two_streams_at_once(workdir, exported, look_ahead):
    pytest.importorskip("sherpa_onnx")
    from conformer.export import sherpa

    card, folder = exported("onnx", "float32", look_ahead)
    config, model, tokenizer, _ = load_model(workdir)
    recordings = [sound(2.0, 0), sound(3.3, 1), sound(1.1, 2)]
    own = sherpa.recognise(pipeline.reference(config, model, card.geometry), tokenizer, recordings)
    agreement = sherpa.compare(card, folder, recordings, own, num_streams=2)
    assert agreement.files == agreement.same_text == agreement.same_tokens == agreement.same_timestamps == 3
    assert agreement.features is not None and agreement.features < 1e-2
    texts = [result["text"] for result in sherpa.decode(card, folder, recordings)["results"]]
    assert all(texts) and len(set(texts)) == 3


def test_a_model_without_metadata_ends_the_clients_process_and_is_reported(exported, tmp_path):
    pytest.importorskip("sherpa_onnx")
    import onnx

    from conformer.export import sherpa

    card, folder = exported("onnx", "float32")
    graph = onnx.load(folder / card.file)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / card.file)
    shutil.copy(folder / "tokens.txt", tmp_path)
    with pytest.raises(ExportError, match=r"sherpa-onnx refused onnx_float32\.onnx"):
        sherpa.decode(card, tmp_path, [sound(1.0, 0)])


def test_features_are_those_of_kaldi_native_fbank_as_the_client_sets_it():
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0.0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, -400
    fbank, samples = knf.OnlineFbank(options), sound(1.5, 3)
    fbank.accept_waveform(16_000, (samples * 32768).tolist())
    fbank.input_finished()
    theirs = np.stack([fbank.get_frame(index) for index in range(fbank.num_frames_ready)])
    front_end = StreamingLogMel(FeatureConfig())
    np.testing.assert_allclose(np.concatenate([front_end.accept(samples), front_end.flush()]), theirs, atol=5e-3)


# -------------------------------------------------------------------- bad input


def test_requests_that_cannot_be_met_are_named_before_any_work(monkeypatch):
    config, _ = make_model()
    with pytest.raises(
        ExportError, match=r"--numerics=int16x8 is not one .*=onnx can have: float32, float16, float16-stable, int8"
    ):
        check_request(config, "onnx", "int16x8", 8, 2)
    with pytest.raises(ExportError, match="needs at least 1 of each"):
        check_request(config, "litert", "int8", 8, 0)
    with pytest.warns(UserWarning, match="chunk_size=16 is not one of train.chunk_sizes"):
        check_request(config, "jax", "float32", 16, 2)
    symmetric = dataclasses.replace(config, model=dataclasses.replace(config.model, causal_conv=False))
    with pytest.raises(ExportError, match=r"fine-tune it with model\.causal_conv=True"):
        check_request(symmetric, "jax", "float32", 8, 2)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "tflite_micro" else name)
    with pytest.raises(ExportError, match=r"needs tflite_micro: pip install .*\[export\]"):
        check_request(config, "tflite-micro", "int8", 8, 2)


def test_models_that_the_stock_client_would_get_wrong_say_why():
    config, _ = make_model()
    assert not_for_sherpa(config) is None
    slow = dataclasses.replace(config, model=dataclasses.replace(config.model, subsampling_factor=8))
    assert "subsampling_factor=4" in (not_for_sherpa(slow) or "")
    narrow = dataclasses.replace(config, features=FeatureConfig(num_mel_bins=40))
    assert "features.num_mel_bins=80, this model needs 40" in (not_for_sherpa(narrow) or "")


@pytest.mark.slow
def test_the_check_command_catches_a_clients_wrong_chunk_size_and_a_changed_artefact(exported, tmp_path):
    card, folder = exported("onnx", "float32")
    for name in (card.file, f"{card.name}.json", "check.npz", "tokens.txt"):
        shutil.copy(folder / name, tmp_path)

    def check(*arguments):
        command = [sys.executable, "parity.py", str(tmp_path / f"{card.name}.json"), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert check(f"--chunk-size={CHUNK_SIZE}", f"--num-left-chunks={NUM_LEFT_CHUNKS}").returncode == 0
    wrong = check("--chunk-size=16")
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1] == (
        "parity.py: onnx_float32.onnx was exported with --chunk-size=8, a client told 16 would fail: tell it 8, or "
        "export again with --chunk-size=16"
    )
    values = json.loads((tmp_path / f"{card.name}.json").read_text())
    (tmp_path / f"{card.name}.json").write_text(json.dumps(values | {"surprise": 1}))
    with pytest.raises(ExportError, match=r"is no card of this export\.py \(.*surprise"):
        load_cards(tmp_path)


# ------------------------------------------------------------------ what is shipped


def test_the_shipped_recogniser_loads_and_fits_its_budgets():
    folder = ROOT / "models" / "words_micro"
    config, model, tokenizer, _ = load_model(folder)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) <= 250_000
    assert load_tokenizer(folder).symbols == tokenizer.symbols and config.model.vocab_size == tokenizer.vocab_size
    assert pipeline.size_of(folder) <= 5e6
    cards = [card for card in load_cards(folder) if card.format == "tflite-micro"]
    assert {card.numerics for card in cards} == {"int16x8", "int8"}
    for card in cards:
        assert card.file_bytes <= 2**20 and card.arena_bytes is not None and card.arena_bytes <= 2**19
