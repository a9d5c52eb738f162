"""The layouts: one network, the same function in each, with the operations that each is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_model import make_config, make_model
from test_model import FRONT_ENDS

from benchmarks.copies import graph_copies, onnx_copies
from conformer.artefacts.coreml import state_shapes
from conformer.artefacts.geometry import Geometry, zeros
from conformer.artefacts.mil_interpreter import MilInterpreter
from conformer.config import FRONT_ENDS as KINDS
from conformer.config import NORMS, ModelConfig
from conformer.cost import Workload, operations
from conformer.export.step import LAYOUT, flat_step, lay_out
from conformer.model import ConformerCTC
from conformer.model.layouts import CHANNELS_FIRST
from conformer.model.layouts.constant import Constant
from conformer.model.layouts.counting import Counting
from conformer.model.layouts.layout import Past
from conformer.model.layouts.stabilised import Stabilised
from conformer.model.linear import linear
from conformer.model.norm import LayerNorm
from conformer.model.positions import known_sinusoids, sinusoids
from conformer.numerics import apply_policy
from conformer.streaming.engine import Engine
from kernels.emulator import FLOAT16, Arithmetic
from kernels.emulator.emulate import emulate
from kernels.layer_norm import NormNumerics

LENGTHS = np.array([46, 33], np.int32)
FEATURES = 12.0 + 4.0 * np.random.default_rng(0).standard_normal((2, 46, 24)).astype(np.float32)


def channels_first(model: ConformerCTC) -> ConformerCTC:
    """The same parameters, executed in the other layout."""
    model = nnx.clone(model)
    model.encoder.layout = CHANNELS_FIRST
    return model


def forward(model, *chunkings):
    """Log-probabilities of the valid frames, for each (chunk_size, num_left_chunks); compiled once."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, features, lengths, chunk_size, num_left_chunks):
        model = nnx.merge(graphdef, state)
        logits, lengths = model(features, lengths, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
        return model.log_softmax(logits), lengths

    results = []
    for chunking in chunkings or [(0, -1)]:
        log_probs, lengths = run(state, FEATURES, LENGTHS, *chunking)
        results.append(np.asarray(log_probs)[np.arange(log_probs.shape[1]) < np.asarray(lengths)[:, None]])
    return np.stack(results)


@pytest.mark.slow_but("depthwise_separable-8-layer_norm")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subsampling, factor", FRONT_ENDS)
def test_both_layouts_agree_on_whole_utterances(subsampling, factor, norm):
    """They agree with and without chunks, with a causal convolution in time and with another."""
    if norm != "layer_norm" and factor != 4:
        pytest.skip("one factor says as much")
    _, model = make_model(subsampling, factor, causal_conv=factor == 4, convolution_norm=norm)
    chunkings = [(0, -1), (3, 1)]
    first, second = (forward(version, *chunkings) for version in (channels_first(model), model))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size, num_left_chunks, look_ahead", [(4, 2, 0), (3, 0, 0), (4, 2, 3)])
@pytest.mark.slow_but("4-2-0", "4-2-3")
def test_both_layouts_agree_on_streams(chunk_size, num_left_chunks, look_ahead):
    """Three streams that begin at different times, chunk by chunk, through the engine that recognisers use."""
    config, model = make_model(causal_conv=True)
    sizes = dict(chunk_size=chunk_size, num_left_chunks=num_left_chunks, look_ahead=look_ahead, batch_size=3)
    size = chunk_size + look_ahead
    engines = [Engine(config, m, **sizes) for m in (model, channels_first(model))]
    assert engines[0].state_bytes == engines[1].state_bytes
    rng = np.random.default_rng(1)
    for index in range(5):
        windows = 12.0 + 4.0 * rng.standard_normal((3, engines[0].framing.window, 24)).astype(np.float32)
        num_frames = np.array([size, size if index > 1 else 0, rng.integers(0, size + 1)], np.int32)
        fresh = np.array([index == 0, index == 2, index == 3])
        expected, found = (engine(windows, num_frames, fresh) for engine in engines)
        valid = np.arange(chunk_size) < num_frames[:, None]
        np.testing.assert_allclose(found[valid], expected[valid], rtol=1e-5, atol=1e-5)


@pytest.mark.slow_but("depthwise_separable-layer_norm")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subsampling", KINDS)
def test_the_exporters_layout_is_the_encoder_from_the_first_chunk_to_a_partial_last_one(subsampling, norm):
    """They agree with a look-ahead of three frames and without one."""
    config, model = make_model(subsampling, causal_conv=True, convolution_norm=norm)
    look_ahead = 3 if norm == "layer_norm" else 0
    geometry = Geometry.of(config, model, 4, 2, look_ahead)
    engine = Engine(config, model, chunk_size=4, num_left_chunks=2, look_ahead=look_ahead)
    state = zeros(geometry.state_shapes).values()
    run = jax.jit(flat_step(model, geometry))
    rng = np.random.default_rng(2)
    for seen in range(0, 19, 4):
        num_frames = min(19 - seen, geometry.window_frames)
        window = (12 + 4 * rng.standard_normal((geometry.window, 24))).astype(np.float32)
        expected = engine(window[None], np.array([num_frames], np.int32))[0, :num_frames]
        mask = np.where(geometry.valid_keys(seen, num_frames), 0, -1e4).astype(np.float32)
        log_probs, *state = run(window, mask, *state)
        assert log_probs.shape == (4, geometry.vocab_size)
        np.testing.assert_allclose(log_probs[:num_frames], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow_but("depthwise_separable-batch_norm")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subsampling", KINDS)
def test_core_mls_layout_is_the_encoder_within_float16(subsampling, norm):
    """Built, saved and interpreted, for two chunks."""
    pytest.importorskip("coremltools")
    from conformer.export import coreml

    config, model = make_model(subsampling, causal_conv=True, convolution_norm=norm)
    geometry = Geometry.of(config, model, 4, 2, look_ahead=3)
    engine = Engine(config, model, chunk_size=4, num_left_chunks=2, look_ahead=3)
    run = MilInterpreter(coreml.program(model, geometry))
    state = {name: np.zeros(shape, np.float16) for name, shape in state_shapes(geometry).items()}
    rng = np.random.default_rng(2)
    for seen in (0, 4):
        window = (12 + 4 * rng.standard_normal((geometry.window, 24))).astype(np.float32)
        mask = np.where(geometry.valid_keys(seen, 7), 0, -1e4).astype(np.float32)[None, :, None, None]
        found = run({"window": window.T[None, None], "mask": mask}, state)["log_probs"][0, :, 0].T
        expected = engine(window[None], np.array([7], np.int32))[0]
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


PUBLIC = {  # what public checkpoints have that a model of this project has not
    "fastconformer": dict(
        factor=8,
        positions="relative",
        subsampling_padding="causal",
        convolution_bias=True,
    ),
    "conformer": dict(subsampling="vanilla", positions="relative", subsampling_padding="symmetric"),
    "wenet": dict(
        subsampling="vanilla",
        positions="absolute",
        pad_before_gate=True,
        convolution_norm="batch_norm",
        final_norm=True,
    ),
}
LOOK_AHEADS = {"fastconformer": 3, "conformer": 0, "wenet": 3}  # encoder frames


@functools.cache
def public_stream(name):
    """A model, its sizes, and windows of a stream with what the engine makes of them; the last holds few frames."""
    config, model = make_model(causal_conv=True, **PUBLIC[name])
    geometry = Geometry.of(config, model, 4, 2, LOOK_AHEADS[name])
    engine = Engine(config, model, chunk_size=4, num_left_chunks=2, look_ahead=LOOK_AHEADS[name])
    rng, lead = np.random.default_rng(2), geometry.lengths.lead
    features = (12 + 4 * rng.standard_normal((4 * geometry.shift, 24))).astype(np.float32)
    padded = np.pad(features, ((lead, geometry.window), (0, 0)))
    windows = [padded[start : start + geometry.window] for start in range(0, 4 * geometry.shift, geometry.shift)]
    expected = [engine(window[None], np.array([geometry.window_frames], np.int32))[0] for window in windows]
    return model, geometry, list(zip(windows, expected, strict=True))


def positions_of(geometry, seen):
    frames = jnp.arange(seen - geometry.left, seen + geometry.window_frames, dtype=jnp.float32)
    return np.asarray(sinusoids(frames, geometry.encoder_dim))


@pytest.mark.slow_but("fastconformer")
@pytest.mark.parametrize("name", PUBLIC)
def test_both_layouts_agree_on_public_architectures(name):
    _, model = make_model(causal_conv=name != "conformer", **PUBLIC[name])
    first, second = (forward(version, (0, -1), (3, 1)) for version in (channels_first(model), model))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.slow_but("conformer")
@pytest.mark.parametrize("name", PUBLIC)
def test_the_exporters_layout_has_public_architectures(name):
    model, geometry, chunks = public_stream(name)
    laid_out, layout = lay_out(model, geometry), LAYOUT.looking_ahead(geometry.look_ahead)
    state = list(zeros(geometry.state_shapes).values())
    pasts = [Past(*state[3 * layer : 3 * layer + 3]) for layer in range(geometry.num_layers)]

    @jax.jit
    def run(window, mask, pasts, positions):
        logits, pasts = laid_out.logits(window, mask, pasts, layout, positions)
        return jax.nn.log_softmax(logits), pasts

    for index, (window, expected) in enumerate(chunks):
        mask = np.where(geometry.valid_keys(4 * index, geometry.window_frames), 0, -1e4).astype(np.float32)
        found, pasts = run(window, mask, pasts, positions_of(geometry, 4 * index))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.slow_but("fastconformer")
@pytest.mark.parametrize("name", PUBLIC)
def test_core_mls_layout_has_public_architectures(name):
    pytest.importorskip("coremltools")
    from conformer.export import coreml

    model, geometry, chunks = public_stream(name)
    run = MilInterpreter(coreml.program(model, geometry))
    state = {part: np.zeros(shape, np.float16) for part, shape in state_shapes(geometry).items()}
    for index, (window, expected) in enumerate(chunks[:2]):
        mask = np.where(geometry.valid_keys(4 * index, geometry.window_frames), 0, -1e4).astype(np.float32)[
            None, :, None, None
        ]
        inputs = {"window": window.T[None, None], "mask": mask, "offset": np.full((1, 1, 1, 1), 4 * index, np.float32)}
        found = run(inputs, state)["log_probs"][0, :, 0].T
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("seen", [0, 2051, 90_001])
def test_core_ml_counts_the_frames_of_long_streams(seen):
    """Float16 alone would end at 2048 frames: 82 seconds."""
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder as mb

    from conformer.export import coreml

    geometry = public_stream("wenet")[1]

    @mb.program(input_specs=[mb.TensorSpec((1, 1, 1, 1))], opset_version=ct.target.iOS18)
    def program(offset):
        return coreml.key_positions(geometry, offset)

    (found,) = MilInterpreter(program)({"offset": np.full((1, 1, 1, 1), seen, np.float32)}, {}).values()
    expected = known_sinusoids(np.arange(seen - geometry.left, seen + geometry.window_frames), geometry.encoder_dim)
    # Float16 rounds the sinusoids, float32 their angles: the frequency, then the product.
    np.testing.assert_allclose(found[0, :, 0].T, expected, rtol=0, atol=2**-12 + seen * 2**-23)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_cost_model_counts_public_architectures(name):
    """The counts are within a tenth of XLA's for whole utterances."""
    config, model = make_model(causal_conv=True, **PUBLIC[name])
    graphdef, state = nnx.split(model)
    workload = Workload.utterance(config, 4.0)
    features = jax.ShapeDtypeStruct((1, 400, 24), jnp.float32)

    def run(state, features, lengths):
        model = nnx.merge(graphdef, state)
        return model.log_softmax(model(features, lengths)[0])

    counted = jax.jit(run).lower(state, features, jax.ShapeDtypeStruct((1,), jnp.int32)).cost_analysis() or {}
    found = operations(config, workload)
    assert sum(o.flops for o in found) == pytest.approx(counted["flops"], rel=0.1)
    assert operations(config, Workload.chunk(config, 4, 2))


@pytest.mark.parametrize("layout", ["constant", "counting"])
def test_a_kind_that_a_layout_does_not_know_is_named_with_it(layout):
    layout = {"constant": Constant, "counting": lambda: Counting("sequence")}[layout]()
    with pytest.raises(NotImplementedError, match=f"the layout {layout.name} cannot express RMSNorm: add a verb to"):
        layout.norm(nnx.RMSNorm(4, rngs=nnx.Rngs(0)), jnp.zeros((2, 4)))


@pytest.mark.slow_but("int8")
@pytest.mark.parametrize("name", ["bfloat16", "int8", "fp8_e4m3"])
def test_policies_run_in_both_layouts(name):
    """Policies replace linear maps in either layout. Narrow formats round other sums in each."""
    _, model = make_model(causal_conv=True, num_layers=1)
    exact, sequence = forward(model), forward(apply_policy(model, name))
    narrow = forward(apply_policy(channels_first(model), name))
    assert 0 < np.abs(narrow - exact).max() < 2 * np.abs(sequence - exact).max()
    np.testing.assert_allclose(narrow, sequence, atol=2 * np.abs(sequence - exact).max())


@pytest.mark.slow
def test_norms_and_softmax_of_the_emulated_device_work_on_channels():
    """The emulator has a rule for each operation of the layout, too; compiling all of them would take a minute."""
    _, model = make_model(causal_conv=True, num_layers=1)
    model = apply_policy(channels_first(model), "edge_fp16")
    shapes = jax.eval_shape(lambda features, lengths: model(features, lengths)[0], FEATURES, LENGTHS)
    assert shapes.shape == (2, 10, model.head.kernel.shape[1])
    block = model.encoder.blocks[0]
    x = 8.0 * jax.random.normal(jax.random.key(0), (1, 16, 1, 3))
    last = jnp.moveaxis(x, 1, -1)
    np.testing.assert_array_equal(jnp.moveaxis(block.norm(x, axis=1), 1, -1), block.norm(last))
    softmax = block.attention.softmax
    mask = jnp.arange(16)[None, :, None, None] < jnp.array([5, 16, 0])
    expected = softmax(last, jnp.moveaxis(mask, 1, -1))
    np.testing.assert_array_equal(jnp.moveaxis(softmax(x, mask, axis=1), 1, -1), expected)


@pytest.mark.slow
def test_it_trains_to_the_same_gradients():
    _, model = make_model(causal_conv=True, num_layers=1)
    gradients = []
    for version in (model, channels_first(model)):
        graphdef, state = nnx.split(version)

        def loss(state, features, lengths, graphdef=graphdef):
            return jnp.mean(jnp.sin(nnx.merge(graphdef, state)(features, lengths)[0]))

        gradients.append(jax.jit(jax.grad(loss))(state, FEATURES, LENGTHS))
    for first, second in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_narrow_products_have_the_gradients_of_the_other_layout():
    layer = linear(16, 8, compute="bfloat16", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 16, 1, 3))
    first = nnx.grad(lambda layer, x: jnp.sum(jnp.sin(layer.channels_first(x))), argnums=(0, 1))(layer, x)
    last = nnx.grad(lambda layer, x: jnp.sum(jnp.sin(layer(jnp.moveaxis(x, 1, -1)))), argnums=(0, 1))(layer, x)
    for mine, reference in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(mine, reference, atol=2e-2)


def test_a_frequency_stride_halves_the_bins():
    """Both layouts agree on it, and the rest of the network sees the same shapes."""
    _, model = make_model(num_layers=1, subsampling_frequency_stride=2)
    assert model.encoder.subsampling.projection.kernel.shape[0] == 4 * 2  # of 24 bins, 11, then 2 in place of 5
    np.testing.assert_allclose(forward(channels_first(model)), forward(model), rtol=1e-5, atol=1e-5)


def test_position_biases_are_laid_out_for_one_size():
    _, model = make_model(causal_conv=True)
    laid = CHANNELS_FIRST.lay_out(channels_first(model), 4, 12)
    assert laid.encoder.blocks[0].attention.relative_bias.shape == (2, 12, 4)
    assert model.encoder.blocks[0].attention.relative_bias.shape == (2, 13)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_one_transpose_in_each_attention_and_no_reshape(num_layers):
    """Counts in the graph of a chunk, which transposes the features that come in and the frames that go out, too."""
    config = make_config(causal_conv=True, num_layers=num_layers, execution="channels_first")
    counts = graph_copies(config)
    assert counts["transpose"][0] == num_layers + 2
    assert counts["reshape"][0] == counts["gather"][0] == counts["copy"][0] == 0
    sequence = graph_copies(config.replace({"model.execution": "sequence"}))
    assert all(sequence[kind][1] > counts[kind][1] for kind in ("transpose", "reshape", "slice"))


@pytest.mark.slow
def test_the_exported_graph_gathers_nothing_and_moves_as_much_in_every_block():
    pytest.importorskip("jax2onnx")
    one, two, three = (onnx_copies(make_config(causal_conv=True, num_layers=n)) for n in (1, 2, 3))
    assert one["gather"][0] == 0
    for kind in ("transpose", "reshape"):
        assert two[kind][0] - one[kind][0] == three[kind][0] - two[kind][0], kind


# ------------------------------------------------------------------ stabilised


@pytest.mark.slow
def test_the_stabilised_layout_holds_where_every_operation_is_rounded_to_float16():
    """Norm and softmax, as a graph has them, on the emulated device: rows of eight decades, scores of either sign."""
    half, width = Arithmetic(FLOAT16), 144
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, width)) + rng.choice([0, 0, 3], (64, 1))) * np.geomspace(1e-4, 6e3, 64)[:, None]
    x = x.astype(np.float16).astype(np.float32)
    module = LayerNorm(width, ModelConfig())
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + module.eps)
    scores = rng.standard_normal((64, 80)).astype(np.float32) + np.linspace(-30, 30, 64, dtype=np.float32)[:, None]

    def errors(layout):
        result = np.asarray(emulate(lambda x: layout.norm(module, x), half)(x))
        return np.linalg.norm(result - expected, axis=1) / np.linalg.norm(expected, axis=1)

    assert errors(Stabilised()).max() < NormNumerics(half).error_bound(width)
    assert not errors(Constant()).max() < 0.5  # NaN, too
    probabilities = emulate(Stabilised().softmax, half)(scores)
    assert np.abs(probabilities - jax.nn.softmax(scores)).max() < 1e-2
    log_probs = emulate(Stabilised().log_softmax, half)(scores)
    assert np.abs(log_probs - jax.nn.log_softmax(scores)).max() < 2e-2
    exact = Stabilised().norm(module, jnp.asarray(x))  # in float32
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-4)
