"""Reading public checkpoints: what is refused, and the work directories that come out. No reference is needed."""

import contextlib
import functools
import io
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from conformer.api import LoadError, load
from conformer.checkpoints import nemo
from conformer.checkpoints.convert import read_checkpoint
from conformer.checkpoints.safetensors_file import read_safetensors
from conformer.checkpoints.tensors import ConversionError, Stored, Tensors
from conformer.checkpoints.torch_file import read_torch
from conformer.checkpoints.units import make_tokenizer, plain_model
from conformer.export.formats import check_request
from conformer.streaming.engine import Engine
from conformer.tokenizer import load_tokenizer
from conformer.training.checkpoint import load_model
from tests.changed_checkpoints import (
    CONFORMER,
    FASTCONFORMER,
    PARAKEET,
    WENET,
    TorchPickler,
    TorchTensor,
    copied,
    wenet_with,
    with_settings,
)


class Malicious:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch /tmp/executed",)


def torch_archive(program: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("final/data.pkl", program)
    return file


@pytest.mark.parametrize(
    "content, match",
    [
        ({"a": Malicious()}, r"final\.pt asks for posix\.system, which weights do not need and which could run code"),
        ({"a": np.zeros(2)}, r"asks for numpy.*_reconstruct"),
        ({"a": print}, r"asks for builtins\.print"),
        ({"a": 1}, "no dictionary of tensors alone"),
        ({1: 1}, "no dictionary of tensors alone"),
    ],
)
def test_a_pickle_of_more_than_tensors_is_refused_by_name(content, match):
    with pytest.raises(ConversionError, match=match):
        read_torch(torch_archive(pickle.dumps(content)), "final.pt")


def test_damaged_files_are_refused(tmp_path):
    for data, match in [(b"", "no zip archive"), (b"\x80\x02}q\x00.", "no zip archive")]:
        with pytest.raises(ConversionError, match=match):
            read_torch(io.BytesIO(data), "final.pt")
    with pytest.raises(ConversionError, match=r"final\.pt is damaged"):
        read_torch(torch_archive(b"\x80\x02}q"), "final.pt")
    with pytest.raises(ConversionError, match=r"final\.pt is cut off or damaged"):
        read_torch(io.BytesIO(torch_archive(b"\x80\x02}q").getvalue()[:-9]), "final.pt")
    with pytest.raises(ConversionError, match=r"but a pickle: load it in torch with weights_only=True"):
        read_torch(io.BytesIO(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), "final.pt")
    packed = bytearray(lzma.compress(np.random.default_rng(0).bytes(200_000), preset=0))
    packed[1000] ^= 1
    (tmp_path / "model.nemo").write_bytes(packed)
    with pytest.raises(ConversionError, match=r"model\.nemo is no readable tar"):
        read_checkpoint(tmp_path / "model.nemo")
    path = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    for data in (b"", b"\xff" * 9, len(header).to_bytes(8, "little") + header + b"1234"):
        path.write_bytes(data)
        with pytest.raises(ConversionError, match=r"model\.safetensors is damaged"):
            read_safetensors(path)


def test_tensors_missing_left_over_and_misshapen_are_listed_and_nothing_is_written(golden, tmp_path):
    folder = copied(golden, tmp_path, WENET)
    values = yaml.safe_load((folder / "train.yaml").read_text())
    values["encoder_conf"] |= {"num_blocks": 4, "linear_units": 95}
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    match = r"missing: encoder\.encoders\.3\..* wrong shape: .*w_1\.weight is \[96, 64\]"
    with pytest.raises(ConversionError, match=match):
        read_checkpoint(folder)
    values["encoder_conf"] |= {"num_blocks": 2, "linear_units": 96}
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConversionError, match=r"left over: encoder\.encoders\.2\..*: nothing was written"):
        read_checkpoint(folder)
    out = tmp_path / "out"
    command = [sys.executable, "convert.py", str(folder), f"--out={out}"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert result.returncode == 1 and "left over" in result.stderr and "Traceback" not in result.stderr
    assert not out.exists()


def test_a_file_of_fewer_blocks_is_refused_without_making_them(golden, tmp_path):
    with pytest.raises(ConversionError, match=r"missing: encoder\.encoders\.3\.\*\)"):
        wenet_with(golden, tmp_path, lambda arrays: None, num_blocks=10**9)


@pytest.mark.slow
def test_a_folder_that_holds_a_model_is_not_written_to(golden, tmp_path):
    """The checkpoint's own folder is one: its config.json is another project's."""
    folder = copied(golden, tmp_path, PARAKEET)
    command = [sys.executable, "convert.py", str(folder), f"--out={folder}"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert result.returncode == 1 and "holds a model or a run already (config.json)" in result.stderr
    assert (folder / "config.json").read_bytes() == (golden / PARAKEET / "config.json").read_bytes()


@pytest.mark.parametrize("values, match", [([1, 2], r"a is int8"), ([1.0, np.nan], r"a is not finite")])
def test_what_is_no_weight_is_refused_by_name(values, match):
    array = np.array(values, np.int8 if isinstance(values[1], int) else np.float16)
    tensors = Tensors("final.pt", {"a": Stored(array.shape, array.dtype, lambda: array)})
    tensors.take("a", 2)
    with pytest.raises(ConversionError, match=rf"not of finite floating-point numbers: {match}"):
        tensors.finish()


def test_a_tensor_whose_values_are_to_be_negated_is_refused():
    """As torch saves a lazy negation: its storage holds other values than it has."""
    file, program = io.BytesIO(), io.BytesIO()
    tensor = TorchTensor("a", np.ones(2, np.float32), False, {}, {"neg": True})
    TorchPickler(program, protocol=2).dump({"a": tensor})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("final/data.pkl", program.getvalue())
    with pytest.raises(ConversionError, match=r"final\.pt is damaged \(ValueError: a tensor with .*neg"):
        read_torch(file, "final.pt")


def test_layers_that_wenet_saves_and_does_not_use_are_left_out(golden, tmp_path):
    """`concat_linear` of the versions of 2021 and 2022, and the last norm where `final_norm` is off."""

    def change(arrays):
        for block in range(3):
            arrays[f"encoder.encoders.{block}.concat_linear.weight"] = np.ones((64, 128))
            arrays[f"encoder.encoders.{block}.concat_linear.bias"] = np.ones(64)

    mine, other = wenet_with(golden, tmp_path, change, final_norm=False), read_checkpoint(golden / WENET)
    assert not mine.config.model.final_norm
    assert set(other.parameters) - set(mine.parameters) == {"encoder.final_norm.scale", "encoder.final_norm.bias"}
    for name, array in mine.parameters.items():
        np.testing.assert_array_equal(array, other.parameters[name])


def test_models_of_whole_utterances_have_no_sizes_of_streams(golden, tmp_path):
    read_checkpoint(golden / CONFORMER).save(tmp_path)
    for name in ("chunk_size", "num_left_chunks", "look_ahead"):
        options: dict[str, Any] = {name: 4}
        with pytest.raises(LoadError, match=rf"{name} is of streams, leave it out for .*causal_conv"):
            load(tmp_path, **options)
    command = [sys.executable, "eval.py", f"--workdir={tmp_path}", "--streaming"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert result.returncode == 1 and "eval.py: --streaming: a model with model.causal_conv=False" in result.stderr
    assert not result.stdout  # nothing is recognised before


def test_a_whole_utterance_has_the_context_of_training(golden, tmp_path, monkeypatch):
    """NeMo masks whole utterances by its first context, also where nothing can stream."""
    path = with_settings(golden, tmp_path, FASTCONFORMER, encoder__conv_context_size=None)
    read_checkpoint(path).save(tmp_path / "out")
    config, model, _, _ = load_model(tmp_path / "out")
    assert config.whole_context == (4, 2) and "causal_conv" in (config.not_streaming or "")
    monkeypatch.setattr("conformer.api.WHOLE_SECONDS", 2.0)
    engine = load(tmp_path / "out")._stepper
    windows = np.random.default_rng(0).normal(size=(1, engine.framing.window, 80)).astype(np.float32)
    found = engine(windows, np.array([24], np.int32))[0, :24]
    lead = engine.framing.lengths.lead
    features = jnp.asarray(windows[:, lead:]), jnp.array([engine.framing.end(windows[0], 24) - lead])
    masked, free = (
        model.log_softmax(model(*features, chunk_size=size, num_left_chunks=left)[0])[0, :24]
        for size, left in ((4, 2), (0, -1))
    )
    np.testing.assert_allclose(found, masked, atol=1e-4)
    assert np.abs(found - free).max() > 1e-2


def test_stored_filters_that_differ_are_refused(golden, tmp_path):
    path = with_settings(golden, tmp_path, CONFORMER, preprocessor__highfreq=7_000)
    with pytest.raises(ConversionError, match=r"preprocessor\.featurizer\.fb is not what its configuration describes"):
        read_checkpoint(path)


def test_a_rounded_window_is_known(golden):
    features = read_checkpoint(golden / CONFORMER).config.features
    window = nemo.plan_of(features).window
    for dtype, error, wrong in [(np.float16, 0.0, False), (np.float16, 0.01, True), (np.float32, 1e-3, True)]:
        values = (window + error).astype(dtype)
        stored = Stored(values.shape, values.dtype, functools.partial(np.copy, values))
        tensors = Tensors("model.nemo", {"preprocessor.featurizer.window": stored})
        with pytest.raises(ConversionError, match="window is not what") if wrong else contextlib.nullcontext():
            nemo._check_constants(tensors, features, golden / CONFORMER)


def test_a_compressed_nemo_is_read(golden, tmp_path):
    mine = read_checkpoint(with_settings(golden, tmp_path, FASTCONFORMER, encoder__dropout=0.2, tokenizer__type="BPE"))
    other = read_checkpoint(golden / FASTCONFORMER)
    assert mine.config.model.dropout == 0.2
    for name, array in other.parameters.items():
        np.testing.assert_array_equal(mine.parameters[name], array)


def test_the_last_file_of_a_name_counts(golden, tmp_path):
    """As where a tar is unpacked: one that is appended takes the place of the first. Its error is one line."""
    path = tmp_path / "model.nemo"
    shutil.copyfile(golden / CONFORMER, path)
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("./model_config.yaml")
        member.size = len(data := b"a: [1,\n  {2\n")
        archive.addfile(member, io.BytesIO(data))
    with pytest.raises(ConversionError, match=r"model_config\.yaml is damaged \([^\n]*\): fetch it again"):
        read_checkpoint(path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "broken.nemo").write_bytes(b"no tar")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    for name, match in [
        ("absent", "does not exist"),
        ("broken.nemo", "no readable tar"),
        ("", "no checkpoint that is known here"),
        ("other", "model_type='bert' is not supported, only 'parakeet_ctc'"),
    ]:
        with pytest.raises(ConversionError, match=match):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", [WENET, PARAKEET, CONFORMER, FASTCONFORMER])
def test_units_spell_what_they_decode(golden, tmp_path, name):
    """The blank comes first, whatever its place in the checkpoint was."""
    read_checkpoint(golden / name).save(tmp_path)
    _, model, tokenizer, step = load_model(tmp_path)
    assert (tokenizer.symbols[0], step) == ("<blk>", 0)
    assert tokenizer.vocab_size == model.head.kernel.shape[1]
    text = "the rain is on the way"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert load_tokenizer(tmp_path).symbols == tokenizer.symbols


def test_a_table_without_a_model_spells_with_few_units():
    tokenizer = make_tokenizer(["<blank>", "<unk>", "▁", "a", "b", "▁a", "ab", "▁ab"], 0)
    assert [tokenizer.symbols[id] for id in tokenizer.encode("ab b")] == ["▁ab", "▁", "b"]
    capitals = make_tokenizer(["<blank>", "<unk>", "▁", "A", "B", "▁A", "AB", "▁AB"], 0)  # texts are in small letters
    assert capitals.decode(capitals.encode(capitals.normalise("AB b"))) == "AB B"
    assert capitals.spellings("ab") == ["AB"]
    chinese = make_tokenizer(["<blank>", "<unk>", "你", "好", "<sos/eos>"], 0)
    assert chinese.decode(chinese.encode("你好")) == "你好"
    scores = {"▁": -9.0, "a": -9.0, "b": -9.0, "▁a": 0.0}
    merges = make_tokenizer(["a", "b", "▁", "▁a", "<pad>"], 4, plain_model(scores, "bpe"))
    assert [merges.symbols[id] for id in merges.encode("ab a")] == ["▁a", "b", "▁a"]


@pytest.mark.parametrize("name, match", [(PARAKEET, "causal_conv=False"), (CONFORMER, "causal_conv=False")])
def test_models_of_whole_utterances_do_not_stream(golden, tmp_path, name, match):
    read_checkpoint(golden / name).save(tmp_path)
    config, model, _, _ = load_model(tmp_path)
    for refused in (
        lambda: Engine(config, model),
        lambda: check_request(config, "onnx", "float32", 16, 4),
    ):
        with pytest.raises(ValueError, match=match):
            refused()
    causal = config.replace({"model.causal_conv": True, "features.normalise": False})
    assert "full_context" in (causal.not_streaming or "")
    assert causal.replace({"model.full_context": False}).not_streaming is None
