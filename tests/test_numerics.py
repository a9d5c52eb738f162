"""Numerics policies, applied to the recogniser and to models built from NNX's own modules."""

import jax
import numpy as np
import pytest
from flax import nnx

from conformer.model import ConformerCTC
from conformer.numerics import POLICIES, apply_policy, calibrate, scale_residual, scale_stream
from conformer.numerics.modules import Norm
from examples.large_residuals import (
    LanguageModel,
    VisionTransformer,
    add_peak,
    example_inputs,
    readers,
    relative_error,
    writers,
)
from tests.small_model import make_model

LENGTHS = np.array([58, 41], np.int32)


@pytest.fixture(scope="module")
def features():
    return 12.0 + 4.0 * np.random.default_rng(0).standard_normal((2, 58, 24)).astype(np.float32)


def log_probs(model: ConformerCTC, features, **chunking):
    def forward(features, lengths):
        logits, lengths = model(features, lengths, **chunking)
        return model.log_softmax(logits), lengths

    result, lengths = jax.jit(forward)(features, LENGTHS[: len(features)])
    return np.asarray(result)[np.arange(result.shape[1]) < np.asarray(lengths)[:, None]]


def test_float32_is_the_model_itself():
    _, model = make_model()
    assert apply_policy(model, "float32") is model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [("bfloat16", 0.3), ("float16", 0.05), ("int8", 0.5), ("fp8_e4m3", 2.0)])
def test_narrow_linear_maps_stay_close_and_leave_the_model_alone(name, bound, features):
    _, model = make_model()
    before = log_probs(model, features)
    after = log_probs(apply_policy(model, name), features)
    assert 0 < np.abs(after - before).max() < bound
    np.testing.assert_array_equal(log_probs(model, features), before)


@pytest.mark.slow
def test_the_edge_device_stays_close(features):
    _, model = make_model()
    expected = log_probs(model, features)
    assert 0 < np.abs(log_probs(apply_policy(model, "edge_fp16"), features) - expected).max() < 0.2


def test_a_scaled_residual_stream_is_the_same_function(features):
    _, model = make_model()
    np.testing.assert_array_equal(log_probs(scale_residual(model, 1024.0), features), log_probs(model, features))
    with pytest.raises(ValueError, match="power of two"):
        scale_residual(model, 3.0)


@pytest.mark.slow
def test_a_large_residual_stream_breaks_the_naive_device_alone(features):
    _, model = make_model()
    expected = log_probs(model, features)
    scaled = scale_residual(model, 1024.0)
    assert np.abs(log_probs(apply_policy(scaled, "edge_fp16"), features) - expected).max() < 0.2
    assert not np.abs(log_probs(apply_policy(scaled, "edge_fp16_naive"), features) - expected).max() < 2.0


@pytest.mark.slow
def test_a_stream_equals_the_whole_utterance_on_the_edge_device(features):
    _, model = make_model(causal_conv=True)
    model = apply_policy(model, "edge_fp16")
    chunk_size, left = 4, 2
    whole = log_probs(model, features[:1], chunk_size=chunk_size, num_left_chunks=left)
    window, shift = (
        model.encoder.subsampling.window(chunk_size),
        chunk_size * model.encoder.subsampling.subsampling_factor,
    )
    step = jax.jit(lambda cache, window: model.encoder.step(cache, model.standardise(window)))
    cache, chunks = model.encoder.initial_cache(1, chunk_size, left), []
    for start in range(0, 58 - window + 1, shift):
        x, cache = step(cache, features[:1, start : start + window])
        chunks.append(np.asarray(model.log_softmax(model.head(x)))[0])
    streamed = np.concatenate(chunks)
    assert np.abs(streamed - whole[: len(streamed)]).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "peak", "naive_fails"),
    [(LanguageModel, 1e2, False), (LanguageModel, 3e4, True), (VisionTransformer, 3e3, True)],
)
def test_any_nnx_model_with_a_large_residual_stream(make, peak, naive_fails):
    model = make(rngs=nnx.Rngs(0))
    add_peak(model, peak)
    inputs = example_inputs()[make]
    assert relative_error(model, "edge_fp16", inputs) < 0.02
    assert (not relative_error(model, "edge_fp16_naive", inputs) < 0.5) == naive_fails


@pytest.mark.slow
def test_a_stream_beyond_the_format_is_scaled_back_into_it():
    model = LanguageModel(rngs=nnx.Rngs(0))
    add_peak(model, 3e5)
    tokens = example_inputs()[LanguageModel]
    before = np.asarray(model(tokens))
    with pytest.raises(ValueError, match="exceeds"):
        apply_policy(model, "edge_fp16")
    scale_stream(writers(model), readers(model), 2.0**-4)
    np.testing.assert_array_equal(np.asarray(model(tokens)), before)
    apply_policy(model, "edge_fp16")


@pytest.mark.slow
def test_static_scales_hold_for_the_data_they_were_made_from(features):
    _, model = make_model()
    model = scale_residual(model, 1024.0)
    calibrated = calibrate(model, "edge_fp16", [(features, LENGTHS)])
    assert np.abs(log_probs(calibrated, features) - log_probs(model, features)).max() < 0.2
    scales = {
        module.numerics.pre_normaliser.static for _, module in nnx.iter_modules(calibrated) if isinstance(module, Norm)
    }
    assert len(scales) > 1
    with pytest.raises(ValueError, match="no batches"):
        calibrate(model, "edge_fp16", [])
    with pytest.raises(ValueError, match="int8"):
        calibrate(model, "int8", [(features, LENGTHS)])


def test_unknown_policies_are_named():
    _, model = make_model()
    with pytest.raises(ValueError, match="float7"):
        apply_policy(model, "float7")
    assert {"float32", "bfloat16", "float16", "edge_fp16", "edge_fp16_naive", "int8"} <= POLICIES.keys()
