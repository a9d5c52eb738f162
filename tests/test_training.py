"""Training: that it learns, what a step does to the state, optimisers and schedules, what is said meanwhile."""

import dataclasses
import json
import types
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_model import RATE
from small_training import arrays, assert_same, batch_of_noise, start, tiny

import train
from conformer.config import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    FeatureConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
)
from conformer.ctc import ctc_loss
from conformer.data import load_utterances
from conformer.evaluation.offline import make_forward, transcribe
from conformer.features import log_mel
from conformer.model.norm import BatchNorm
from conformer.training.checkpoint import load_model
from conformer.training.metrics import Progress
from conformer.training.muon import UPDATE_RMS, orthogonalise_all
from conformer.training.state import learning_rate, make_optimiser
from conformer.training.step import draw_chunk, make_train_step
from kernels.depthwise_conv import depthwise_conv

# ------------------------------------------------------------------ it learns


@pytest.mark.slow
def test_ten_utterances_are_learned_by_heart(tmp_path, capsys):
    """The finished run is left alone afterwards, by its own configuration and by others."""
    pytest.importorskip("espeakng_loader", reason="the embedded corpus needs pip install -e '.[demo]'")
    config = Config(
        features=FeatureConfig(sample_rate=RATE, num_mel_bins=40, high_freq=3_800.0),
        augment=AugmentConfig(num_freq_masks=0, num_time_masks=0),
        data=DataConfig(
            synthetic=SyntheticConfig(num_voices=3, train_utterances=10, eval_utterances=1),
            eval_splits=("train",),
            batch_seconds=36.0,
            bucket_seconds=(3.6,),
        ),
        model=ModelConfig(
            positions="learned",
            encoder_dim=64,
            num_layers=1,
            feed_forward_dim=128,
            subsampling_channels=12,
            kernel_size=7,
            dropout=0.0,
        ),
        train=TrainConfig(
            num_steps=220,
            learning_rate=8e-3,
            warmup_steps=20,
            ema_decay=0.9,
            eval_every=1_000,
            checkpoint_every=1_000,
        ),
    )
    train.train(config, tmp_path)
    config, model, tokenizer, step = load_model(tmp_path)
    assert step == config.train.num_steps
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    utterances = [u for u in load_utterances(config) if u.split == "train"]
    transcripts = transcribe(config, make_forward(config, graphdef), params, statistics, tokenizer, utterances)
    score = transcripts.score()
    assert (score.utterances, score.errors) == (10, 0)
    metrics = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(metrics.splitlines()[-1]) == {"step": step, "eval_wer": 0.0, "eval_cer": 0.0}

    capsys.readouterr()
    train.train(config, tmp_path)
    assert f"starting at step {step}" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == metrics
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, clip_norm=2.0))
    with pytest.raises(ConfigError, match=r"other values of train\.clip_norm: choose another --workdir"):
        train.train(other, tmp_path)


# ------------------------------------------------------------------- the step


FULL = (np.int32(0), np.int32(-1))


@pytest.mark.slow
def test_every_format_takes_finite_steps_and_bad_ones_are_skipped():
    """A step with NaN is skipped, counted and leaves all but the counters (and the loss scale) as it was."""
    first_losses = {}
    for compute in ("float32", "bfloat16", "float16"):
        config = tiny(compute)
        graphdef, state = start(config)
        lowered = make_train_step(config, graphdef).lower(state, batch_of_noise(), *FULL)
        step = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        before = arrays(state.params)
        taken = []
        for _ in range(12):  # float16 first finds a scale that does not overflow
            state, metrics = step(state, batch_of_noise(), *FULL)
            assert np.isfinite(metrics["loss"]) or compute == "float16"
            taken.append(int(metrics["skipped_in_a_row"]) == 0)
            first_losses.setdefault(compute, float(metrics["loss"])) if taken[-1] else None
        assert sum(taken) >= 6 and int(state.skipped) == 12 - sum(taken) and int(state.step) == 12
        after = arrays(state.params)
        assert all(np.isfinite(value).all() for value in after.values())
        assert any((after[name] != before[name]).any() for name in after)

        good = arrays(state._replace(step=None, skipped=None, skipped_in_a_row=None, loss_scale=None))
        scale, skipped = (state.loss_scale and float(state.loss_scale.scale)), int(state.skipped)
        poisoned = batch_of_noise()
        poisoned.audio[1, 700] = np.nan
        for count in (1, 2):
            state, metrics = step(state, poisoned, *FULL)
            assert int(metrics["skipped"]) == int(state.skipped) == skipped + count
            assert int(metrics["skipped_in_a_row"]) == int(state.skipped_in_a_row) == count
            assert not np.isfinite(metrics["loss"]) and int(state.step) == 12 + count
        assert_same(good, arrays(state._replace(step=None, skipped=None, skipped_in_a_row=None, loss_scale=None)))
        if compute == "float16":
            assert state.loss_scale is not None and 4 * float(state.loss_scale.scale) == scale
        state, metrics = step(state, batch_of_noise(), *FULL)
        assert int(metrics["skipped_in_a_row"]) == 0 and np.isfinite(metrics["loss"])
    np.testing.assert_allclose(first_losses["bfloat16"], first_losses["float32"], rtol=2e-2)
    np.testing.assert_allclose(first_losses["float16"], first_losses["float32"], rtol=5e-3)
    assert len(set(first_losses.values())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_statistics_of_batch_norm_follow_good_steps_alone(accumulate):
    """They move towards those of the batch's valid frames, once a part of the batch; never in a skipped step."""
    config = tiny(convolution_norm="batch_norm").replace({"train.accumulate": accumulate})
    graphdef, state = start(config)
    step = make_train_step(config, graphdef)

    def statistics(state):
        return {name: leaf for name, leaf in arrays(state.statistics).items() if "middle_norm" in name}

    before = statistics(state)
    assert len(before) == 2
    state, _ = step(state, batch_of_noise(), *FULL)
    after = statistics(state)
    kept = BatchNorm.MOMENTUM**accumulate
    for name, value in after.items():
        assert np.isfinite(value).all() and (value != before[name]).all()
        if "variance" in name:
            assert (value > kept * before[name]).all()
    state, _ = step(state, batch_of_noise(np.nan), *FULL)
    assert_same(statistics(state), after)


def test_batch_norm_normalises_the_frames_inside_and_streams_by_what_it_remembers():
    norm = BatchNorm(3, ModelConfig())
    norm.mean[...], norm.variance[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 4.0, 9.0])
    kernel = jax.random.normal(jax.random.key(0), (4, 3))
    x = jax.random.normal(jax.random.key(1), (2, 9, 3))
    folded, bias = norm.fold(kernel, None)
    y = depthwise_conv(x, kernel)
    expected = (y - norm.mean[...]) / jnp.sqrt(norm.variance[...] + norm.eps) * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(depthwise_conv(x, folded) + bias, expected, atol=1e-5)
    inside = (jnp.arange(9) < jnp.array([[9], [4]]))[..., None]
    valid = np.asarray(norm.of_batch(x, inside, axis=-1))[np.asarray(inside)[..., 0]]
    np.testing.assert_allclose(valid.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(valid.var(0), 1, atol=1e-3)


@pytest.mark.slow
def test_an_intermediate_loss_is_mixed_in():
    """The loss is linear in the weight, and its other end is the loss of the first of two blocks through the head."""
    batch, config = batch_of_noise(), tiny(num_layers=2, dropout=0.0).replace({"train.intermediate_weight": 0.25})
    graphdef, state = start(config)

    @jax.jit
    def losses(params, statistics, batch):
        model = nnx.merge(graphdef, params, statistics)
        features, lengths = log_mel(config.features, batch.audio, batch.audio_lengths)
        outputs, lengths = model.encoder.outputs(model.standardise(features), lengths)
        return [ctc_loss(model.head(x), lengths, batch.labels, batch.label_lengths)[:2].sum() / 6 for x in outputs]

    middle, last = losses(state.params, state.statistics, batch)
    loss = make_train_step(config, graphdef)(state, batch, *FULL)[1]["loss"]
    np.testing.assert_allclose(loss, 0.25 * middle + 0.75 * last, rtol=1e-5)
    assert abs(middle - last) > 1e-3
    with pytest.raises(ConfigError, match="needs a middle block"):
        Config(model=ModelConfig(num_layers=1), train=TrainConfig(intermediate_weight=0.3))


class Loader:
    def utterance_ids(self, step):
        return [f"utterance-{step}-a", f"utterance-{step}-b"]


def test_a_skipped_step_is_named_and_too_many_stop_the_run(capsys):
    config, progress, loader = tiny(), Progress(0, 10), cast(Any, Loader())
    skipped = {"loss": np.float32("nan"), "skipped_in_a_row": np.int32(1)}
    assert np.isnan(train.check(7, skipped, config, loader, progress))
    message = "step 7: loss or gradient is not finite, update skipped; utterances: utterance-7-a, utterance-7-b\n"
    assert capsys.readouterr().err == message
    assert train.check(8, {"loss": np.float32(2), "skipped_in_a_row": np.int32(0)}, config, loader, progress) == 2.0
    assert capsys.readouterr().err == ""
    with pytest.raises(train.TrainingError, match=r"51 updates in a row were not finite: lower train\.learning_rate"):
        train.check(60, skipped | {"skipped_in_a_row": np.int32(51)}, config, loader, progress)
    progress.close()


def test_the_schedule_rises_to_its_peak_and_falls_to_zero():
    schedule = learning_rate(TrainConfig(num_steps=50, warmup_steps=10, learning_rate=1e-2))
    values = np.array([schedule(step) for step in range(51)])
    assert values.argmax() == 10 and values[0] == 0
    np.testing.assert_allclose([values[10], values[50]], [1e-2, 0], atol=1e-9)
    assert (np.diff(values[:11]) > 0).all() and (np.diff(values[10:]) < 0).all()


def test_muon_turns_linear_maps_by_equal_amounts_and_leaves_the_rest_to_adam():
    """Singular values of its update are about equal, and its size that of AdamW's."""
    rng = np.random.default_rng(0)
    shapes = {"map": (32, 64), "taps": (15, 64), "bias": (64,)}
    params, gradient = ({k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()} for _ in "ab")
    config = TrainConfig(optimiser="muon", weight_decay=0.0, warmup_steps=0, learning_rate=1.0, clip_norm=1e9)
    others = optax.nadam(1.0, b2=config.beta2)
    optimisers: tuple[Any, Any] = make_optimiser(config), others
    found, expected = (o.update(gradient, o.init(params), params)[0] for o in optimisers)
    assert np.linalg.cond(gradient["map"]) > 5
    assert np.linalg.cond(found["map"]) < 2
    assert np.sqrt(np.mean(found["map"] ** 2)) == pytest.approx(0.2, rel=0.2)
    for key in ("taps", "bias"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
@pytest.mark.slow_but("float32-1e-05")
def test_muon_orthogonalises_as_optax_does(precision, tolerance):
    rng = np.random.default_rng(1)
    shapes = [(32, 64), (64, 32), (48, 48), (64, 32)]
    gradient = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    optaxs: Any = optax.contrib.muon(1.0, consistent_rms=UPDATE_RMS)
    expected = optaxs.update(gradient, optaxs.init(gradient), gradient)[0]
    for left, right in zip(orthogonalise_all(gradient, precision), expected, strict=True):
        assert jnp.linalg.norm(left + right) < tolerance * jnp.linalg.norm(right)


def test_chunks_are_drawn_from_the_configured_and_repeat():
    config = TrainConfig(chunk_sizes=(0, 8, 16), num_left_chunks=(2, -1))
    drawn = [draw_chunk(config, 5, step) for step in range(200)]
    assert drawn == [draw_chunk(config, 5, step) for step in range(200)]
    assert set(drawn) == {(0, -1), (8, 2), (8, -1), (16, 2), (16, -1)}
    assert drawn != [draw_chunk(config, 6, step) for step in range(200)]


def test_the_time_left_counts_no_compilation(monkeypatch):
    clock = iter([0.0, 110.0])
    monkeypatch.setattr("conformer.training.metrics.time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    progress = Progress(5, 25, muted=True)
    for _ in range(10):
        progress.update()
    progress.set_aside(100.0)
    assert progress.seconds_left == 10.0  # as many steps as before, which took 10 s of 110
