"""Resumed runs: checkpoints are whole or named as damaged, and the log loses the steps that are repeated."""

import json
import pathlib
import resource
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_training import arrays, assert_same, start, tiny

from conformer.tokenizer import CharTokenizer
from conformer.training.checkpoint import CheckpointError, Checkpoints, load_model, save_weights
from conformer.training.metrics import MetricsLog


def test_a_checkpoint_restores_every_bit_though_training_goes_on(tmp_path):
    """The state is donated to the next step while it is still being written."""
    _, state = start(tiny("float16", encoder_dim=128, feed_forward_dim=512))
    spoil = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 + 7, state), donate_argnums=0)
    checkpoints, stored = Checkpoints(tmp_path, keep=2), {}
    for step in (1, 2, 3):
        state = jax.tree.map(lambda x, step=step: x + jnp.asarray(step, x.dtype), state)
        stored[step] = arrays(state)
        checkpoints.save(step, state)
        state = spoil(state)
    checkpoints.wait()
    again = Checkpoints(tmp_path)
    assert again.latest_step() == 3 and sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    assert_same(arrays(again.restore(state)), stored[3])
    assert_same(arrays(again.restore(state, 2)), stored[2])


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> pathlib.Path:
    """A model that was not trained."""
    folder, config = tmp_path_factory.mktemp("untrained"), tiny()
    CharTokenizer(["<blk>", *"abcdefgh"]).save(folder)
    (folder / "config.json").write_text(config.to_json())
    checkpoints = Checkpoints(folder)
    checkpoints.save(5, start(config)[1])
    checkpoints.wait()
    return folder


@pytest.fixture
def workdir(untrained, tmp_path) -> pathlib.Path:
    """A copy of it that may be damaged."""
    return shutil.copytree(untrained, tmp_path, dirs_exist_ok=True)


def test_a_checkpoint_that_does_not_fit_is_named(workdir):
    config, model, tokenizer, step = load_model(workdir)
    assert model.head.bias is not None
    assert step == 0 and tokenizer.vocab_size == config.model.vocab_size == model.head.bias.shape[0]

    block = r"average\.encoder\.blocks"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"encoder_dim": 32}, block + r"\.0\..* is float32\[16\] there and float32\[32\] here"),
        ({"num_layers": 2}, block + r"\.1\..* is absent there and float32\[16\] here"),
        (
            {"max_relative_distance": 7},
            block + r".*relative_bias.* is float32\[2, 13\] there and float32\[2, 15\] here",
        ),
    ]
    for sizes, difference in refused:
        (workdir / "config.json").write_text(tiny(**sizes).to_json())
        pattern = r"checkpoints/5 is not a checkpoint of the model that config\.json describes \(" + difference
        with pytest.raises(CheckpointError, match=pattern):
            load_model(workdir)
    two_layers = Checkpoints(workdir / "other")
    two_layers.save(1, start(tiny(num_layers=2))[1])
    two_layers.wait()
    with pytest.raises(CheckpointError, match=block + r"\.1\..* is float32\[16\] there and absent here"):
        two_layers.restore(start(tiny())[1])

    (workdir / "config.json").write_text(tiny(vocab_size=12).to_json())
    with pytest.raises(CheckpointError, match="the tokenizer has 9 units, the model 12"):
        load_model(workdir)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that the library leaves behind
def test_a_damaged_or_absent_checkpoint_is_named(workdir):
    files = [path for path in (workdir / "checkpoints" / "5").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(
        CheckpointError, match=r"checkpoints/5 is damaged .* remove it to fall back to an older"
    ) as error:
        load_model(workdir)
    assert "\n" not in str(error.value)
    (workdir / "checkpoints" / "5").rename(workdir / "elsewhere")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: train first \(train\.py"):
        load_model(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: train first \(train\.py"):
        load_model(workdir)
    assert not (workdir / "checkpoints").exists()  # the folder may be read-only


def test_released_weights_that_are_damaged_are_named(workdir):
    _, model, _, _ = load_model(workdir)
    save_weights(workdir, model, 7)
    path = workdir / "weights.npz"
    whole = path.read_bytes()
    expected = jax.tree.leaves(nnx.state(load_model(workdir)[1]))
    rng = np.random.default_rng(0)
    for cut in [0, 1, len(whole) - 1, *rng.integers(2, len(whole) - 1, 10)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"weights\.npz is damaged \(.+\): restore it$"):
            load_model(workdir)
    harmless = 0
    for at in rng.integers(0, len(whole), 30):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:  # not every byte of the container says something of the arrays: a date, for one
            for leaf, before in zip(jax.tree.leaves(nnx.state(load_model(workdir)[1])), expected, strict=True):
                np.testing.assert_array_equal(leaf, before)
            harmless += 1
        except CheckpointError as error:
            assert "is damaged" in str(error) and "\n" not in str(error)
    assert harmless < 10
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"weights\.npz cannot be read \(Is a directory\)"):
        load_model(workdir)


@pytest.mark.filterwarnings("ignore")  # what the library says while its write fails
def test_a_write_that_fails_is_reported_and_leaves_the_last_checkpoint(workdir):
    """Files may not grow beyond 4 KiB for a while: the same path as a full disk."""
    _, state = start(tiny())
    checkpoints = Checkpoints(workdir)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not write .* free disk space .* resumes from step 5"):
            checkpoints.save(6, state)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_model(workdir)[3] == 0 and Checkpoints(workdir).latest_step() == 5


def test_a_resumed_log_drops_the_steps_to_be_repeated_and_a_cut_line(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in range(1, 7):
        log.write(step, loss=1.0 / step)
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo')
    log = MetricsLog(tmp_path, 4)
    log.write(5, loss=9.0)
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and rows[-1]["loss"] == 9.0
