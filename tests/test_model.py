"""The network from audio to log-probabilities: lengths, independence of padding and batch, streams."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import TOKENIZER, make_config, make_model, sound

from conformer.config import FRONT_ENDS as KINDS
from conformer.decode.greedy import GreedyDecoder, greedy
from conformer.evaluation.offline import make_forward
from conformer.filterbank import num_frames, trailing_samples
from conformer.model import ConformerCTC
from conformer.model.layouts import SEQUENCE
from conformer.model.linear import dropout, linear
from conformer.model.subsampling import lengths_of, make_subsampling
from conformer.streaming import Recognizer
from conformer.streaming.engine import Engine

PADDED = 14_000  # samples of a batch
FRONT_ENDS = [(kind, factor) for kind in KINDS for factor in (4, 6, 8)]
front_ends = pytest.mark.parametrize("subsampling, factor", FRONT_ENDS)


def forward(config, model):
    run = make_forward(config, nnx.split(model, nnx.Param, ...)[0])

    def call(audio, lengths, chunk_size=0, num_left_chunks=-1):
        _, params, statistics = nnx.split(model, nnx.Param, ...)
        inputs = jnp.asarray(audio), jnp.asarray(lengths), chunk_size, num_left_chunks
        return jax.device_get(run(params, statistics, *inputs))

    return call


# -------------------------------------------------------------------- lengths


@front_ends
def test_one_more_frame_is_enough_for_one_more_output(subsampling, factor):
    """Shapes follow output_lengths exactly around each step of it."""
    model = make_config(subsampling, factor).model
    front_end = nnx.eval_shape(lambda: make_subsampling(model, 24, compute="float32", rngs=nnx.Rngs(0)))
    first = lengths_of(model).right_context + 1
    assert front_end.window(1) == first and front_end.window(5) == first + 4 * factor
    for length in [first, first + 1, first + factor - 1, first + factor, first + 3 * factor - 1, first + 9 * factor]:
        features = jax.ShapeDtypeStruct((2, length, 24), jnp.float32)
        frames = jax.eval_shape(run_front_end, front_end, features).shape[1]
        assert frames == lengths_of(model).output_lengths(length) == front_end.output_lengths(np.array([length]))[0]
    with pytest.raises(ValueError, match=f"needs {first}"):
        front_end.check(first - 1)


def run_front_end(front_end, features):
    return front_end(SEQUENCE.image(features), SEQUENCE)


@settings(max_examples=100)
@given(st.sampled_from(FRONT_ENDS), st.integers(0, 5_000))
def test_output_lengths_count_the_whole_receptive_fields(front_end, length):
    lengths, starts = lengths_of(make_config(*front_end).model), range(0, length, front_end[1])
    frames = lengths.output_lengths(length)
    assert frames == sum(start + lengths.right_context < length for start in starts)
    assert frames == lengths.output_lengths(np.array([length]))[0] == lengths.output_lengths(jnp.array([length]))[0]


@pytest.mark.slow_but("depthwise_separable-8")
@front_ends
@settings(max_examples=8)
@given(samples=st.lists(st.integers(1, PADDED), min_size=3, max_size=3))
def test_valid_frames_are_those_of_the_utterance_alone(subsampling, factor, samples):
    """The lengths that the model returns for a padded batch; any values are finite, however short an utterance is."""
    config, model = make_model(subsampling, factor)
    audio = np.stack([np.pad(sound(n), (0, PADDED - n)) for n in samples])
    log_probs, lengths = cached_forward(subsampling, factor)(audio, samples)
    for n, length in zip(samples, lengths, strict=True):
        assert length == model.encoder.subsampling.output_lengths(num_frames(config.features, n))
    assert np.isfinite(log_probs).all() and log_probs.shape[1] >= max(lengths)


@functools.cache
def cached_forward(subsampling="depthwise_separable", factor=4, causal_conv=False):
    return forward(*make_model(subsampling, factor, causal_conv))


def test_too_few_mel_bins_are_named():
    with pytest.raises(ValueError, match="6 mel bins are too few"):
        nnx.eval_shape(lambda: make_subsampling(make_config(factor=8).model, 6, compute="float32", rngs=nnx.Rngs(0)))


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="fill it in from the tokenizer"):
        ConformerCTC(make_config(vocab_size=0), rngs=nnx.Rngs(0))


# ---------------------------------------------------- padding and batch mates


@pytest.mark.slow_but("depthwise_separable-8-False")
@pytest.mark.parametrize(
    "subsampling, factor, causal_conv",
    [("vanilla", 6, False), ("depthwise_separable", 8, False), ("stacked", 4, True)],
)
def test_neither_padding_nor_batch_mates_matter(subsampling, factor, causal_conv):
    run = cached_forward(subsampling, factor, causal_conv)
    utterance = sound(9_137)
    rows = np.full((3, PADDED), 0.5, np.float32)  # padding is not silence
    for row, audio in enumerate((sound(PADDED, 1), utterance, sound(4_800, 2))):
        rows[row, : len(audio)] = audio
    results = []
    for chunks in [(0, -1), (4, 1)]:
        (alone,), (length,) = run(utterance[None], [9_137], *chunks)
        together, lengths = run(rows, [PADDED, 9_137, 4_800], *chunks)
        assert lengths[1] == length > 10
        np.testing.assert_allclose(together[1, :length], alone[:length], rtol=1e-5, atol=1e-5)
        results.append(alone[:length])
    assert np.abs(results[0] - results[1]).max() > 1e-2  # the chunk mask does something


# -------------------------------------------------------------------- streams


CHUNK_SIZES = (4, 8, 16, 32)


@pytest.mark.slow_but("vanilla-4", "depthwise_separable-8", "stacked-6")
@front_ends
def test_windows_that_overlap_give_the_front_end_of_the_whole(subsampling, factor):
    """The blocks get the same frames with every chunk size."""
    front_end = make_model(subsampling, factor, causal_conv=True)[1].encoder.subsampling
    features = np.random.default_rng(0).standard_normal((67 * factor + front_end.right_context, 24), np.float32)
    run = nnx.jit(run_front_end)
    whole = np.asarray(run(front_end, jnp.asarray(features[None])))[0]
    for chunk_size in CHUNK_SIZES:
        starts = range(0, len(whole) - chunk_size + 1, chunk_size)
        windows = [features[start * factor :][: front_end.window(chunk_size)] for start in starts]
        for start, chunk in zip(starts, run(front_end, jnp.asarray(np.stack(windows))), strict=True):
            np.testing.assert_allclose(chunk, whole[start : start + chunk_size], rtol=1e-5, atol=1e-5)


@pytest.mark.slow_but("5", "15")
@pytest.mark.parametrize("case", range(16))
def test_chunks_equal_the_masked_full_pass(case):
    """Every chunk size with left contexts of 0, 2, 4 and all chunks, on the front ends in turn.

    Three streams begin one after the other in one batch, and end anywhere in a chunk.
    """
    chunk_size, num_left_chunks = CHUNK_SIZES[case // 4], (0, 2, 4, -1)[case % 4]
    subsampling, factor = FRONT_ENDS[case % len(FRONT_ENDS)]
    encoder = make_model(subsampling, factor, causal_conv=True)[1].encoder
    full, step = cached_encoder(subsampling, factor)
    rng = np.random.default_rng(0)
    right_context = encoder.subsampling.right_context
    longest = 70 * factor + right_context
    features = rng.standard_normal((3, longest, 24)).astype(np.float32)
    shift, window = chunk_size * factor, encoder.subsampling.window(chunk_size)
    padded = np.pad(features, ((0, 0), (0, 2 * window), (0, 0)), constant_values=3.0)  # padding is not silence
    starts = np.array([0, 1, 3])  # of each stream, in steps
    left = -(-70 // chunk_size) if num_left_chunks < 0 else num_left_chunks  # all of it
    for lengths in [(longest, longest - factor, 1), rng.integers(right_context + 1, longest, 3)]:
        expected, frames = full(features, np.array(lengths), chunk_size, num_left_chunks)
        frames, chunks = np.asarray(frames), -(-np.asarray(frames) // chunk_size)
        cache = jax.tree.map(jnp.ones_like, encoder.initial_cache(3, chunk_size, left))
        streams = [[], [], []]
        for now in range(int((starts + chunks).max())):
            at = np.clip(now - starts, 0, chunks)
            valid = np.where(now < starts, 0, np.clip(frames - at * chunk_size, 0, chunk_size))
            windows = np.stack([padded[row, at[row] * shift :][:window] for row in range(3)])
            out, cache = step(cache, starts == now, windows, valid)
            for row in range(3):
                streams[row] += list(np.asarray(out)[row, : valid[row]])
        for row, length in enumerate(frames):
            assert len(streams[row]) == length
            if length:
                np.testing.assert_allclose(streams[row], expected[row, :length], rtol=1e-5, atol=1e-5)


@functools.cache
def cached_encoder(subsampling, factor):
    """The full pass, compiled once for all chunks, and the step."""
    graphdef, state = nnx.split(make_model(subsampling, factor, causal_conv=True)[1].encoder)

    @jax.jit
    def full(features, lengths, size, left):
        return nnx.merge(graphdef, state)(features, lengths, chunk_size=size, num_left_chunks=left)

    @jax.jit
    def step(cache, begins, window, num_frames):
        cache = jax.tree.map(lambda a: jnp.where(begins.reshape(-1, *[1] * (a.ndim - 1)), 0, a), cache)
        out, new_cache = nnx.merge(graphdef, state).step(cache, window, num_frames)
        assert jax.tree.map(jnp.shape, new_cache) == jax.tree.map(jnp.shape, cache)
        return out, new_cache

    return full, step


def test_frames_of_a_look_ahead_are_seen_and_not_remembered():
    """A step gives the first frames of one without look-ahead over the same window, and the state that it had then."""
    size, ahead, left, inputs = 4, 3, 8, 8
    graphdef, weights = nnx.split(make_model(causal_conv=True, kernel_size=inputs + 1)[1].encoder)
    step = jax.jit(lambda *args: nnx.merge(graphdef, weights).step(*args), static_argnums=3)
    encoder = nnx.merge(graphdef, weights)
    rng, window = np.random.default_rng(0), encoder.subsampling.window(size + ahead)
    cache = encoder.initial_cache(2, size, left // size)

    def remembered(old, full, axis, count):
        """The newest frames of those before, and of the window's as far as they are not the look-ahead."""
        kept = np.arange(size, count), np.arange(count - ahead - size, count - ahead)
        return np.concatenate(
            [np.take(np.asarray(a), rows, axis) for a, rows in zip((old, full), kept, strict=True)], axis
        )

    for valid in ([7, 7], [7, 7], [7, 5], [4, 2]):
        num_frames = jnp.asarray(valid)
        features = jnp.asarray(rng.standard_normal((2, window, 24), np.float32))
        expected, plain = step(cache, features, num_frames, 0)
        found, new = step(cache, features, num_frames, ahead)
        np.testing.assert_allclose(found, expected[:, :size], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(new.frames, cache.frames + jnp.minimum(num_frames, size))
        for mine, old, full in zip(new.blocks, cache.blocks, plain.blocks, strict=True):
            for name, axis, count in (("key", 2, left), ("value", 2, left), ("inputs", 1, inputs)):
                wanted = remembered(getattr(old, name), getattr(full, name), axis, count)
                np.testing.assert_allclose(getattr(mine, name), wanted, rtol=1e-6, atol=1e-6)
        cache = new


def test_a_look_ahead_is_no_negative_number():
    with pytest.raises(ValueError, match="look_ahead=-1: it is a number of encoder frames"):
        Engine(*make_model(causal_conv=True), chunk_size=4, look_ahead=-1)


def test_a_look_ahead_helps_as_far_as_it_reaches():
    """A frame depends on those of the look-ahead, and on nothing after them."""
    config, model = make_model(causal_conv=True)
    engine = Engine(config, model, chunk_size=4, num_left_chunks=2, look_ahead=3)
    rng = np.random.default_rng(0)
    features = 12 + 4 * rng.standard_normal((engine.framing.window, 24)).astype(np.float32)
    full, changed = np.array([7], np.int32), features.copy()
    expected = engine(features[None], full)
    changed[-1] += 1.0  # of the last frame that is seen
    engine.reset()
    assert np.abs(engine(changed[None], full) - expected).max() > 1e-3
    for valid in (6, 4):  # an utterance that ends before it
        engine.reset()
        found = engine(features[None], np.array([valid], np.int32))
        engine.reset()
        np.testing.assert_allclose(engine(changed[None], np.array([valid], np.int32)), found, atol=1e-6)
    assert found.shape == (1, 4, TOKENIZER.vocab_size)


def test_what_cannot_stream_is_refused():
    _, symmetric = make_model()
    with pytest.raises(ValueError, match="causal_conv=False"):
        symmetric.encoder.initial_cache(1, 4, 1)
    _, causal = make_model(causal_conv=True)
    for chunk_size, num_left_chunks in [(0, 1), (4, -1)]:
        with pytest.raises(ValueError, match="at least 1 and at least 0"):
            causal.encoder.initial_cache(1, chunk_size, num_left_chunks)


class RecordingDecoder(GreedyDecoder):
    """Remembers the log-probabilities that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def step(self, log_probs):
        self.seen.append(np.array(log_probs))
        return super().step(log_probs)


@pytest.mark.slow_but("6")
@pytest.mark.parametrize("factor", [4, 6])
def test_a_stream_gives_the_offline_result_however_it_is_cut(factor):
    config, model = make_model(factor=factor, causal_conv=True)
    model = nnx.clone(model)
    run = forward(config, model)
    audio, (chunk_size, num_left_chunks) = sound(16_240, 3), (4, 2)
    heard = np.pad(audio, (0, trailing_samples(config.features, len(audio))))
    log_probs, (length,) = run(heard[None], [len(heard)])
    assert model.head.bias is not None
    model.head.bias[...] -= log_probs[0, :length].mean(0)  # no symbol is likelier than others: each wins somewhere
    log_probs, _ = run(heard[None], [len(heard)], chunk_size, num_left_chunks)
    expected = TOKENIZER.decode([token.id for token in greedy(log_probs[0, :length])])
    assert len(expected) > 5

    decoders = []

    def decoder():
        decoders.append(RecordingDecoder())
        return decoders[-1]

    engine = Engine(config, model, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
    recognizer = Recognizer(engine, TOKENIZER, decoder=decoder)
    rng = np.random.default_rng(0)
    cuts = [[], range(1, len(audio), 800), sorted(rng.integers(0, len(audio), 30)), [1, 2, 3, len(audio) - 1]]
    for cut in cuts:
        recognizer.reset()
        decoders[:] = decoders[-1:]
        texts = [recognizer.accept(piece) for piece in np.split(audio, list(cut))]
        for before, after in itertools.pairwise(texts):
            assert after.startswith(before)
        assert recognizer.finish() == expected == recognizer.finish()
        seen = np.concatenate([frames for decoder in decoders for frames in decoder.seen])
        np.testing.assert_allclose(seen, log_probs[0, :length], rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------- layers


@pytest.mark.parametrize("compute, tolerance", [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_narrow_products_and_their_gradients_are_near_float32(compute, tolerance):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 32)), jnp.float32)
    narrow = linear(32, 16, compute=compute, rngs=nnx.Rngs(0))
    exact = linear(32, 16, compute="float32", rngs=nnx.Rngs(0))

    def loss(layer, x):
        return jnp.sum(jnp.sin(layer(x)))

    assert narrow(x).dtype == jnp.float32
    error = np.abs(narrow(x) - exact(x)).max()
    assert 0 < error < tolerance * 4
    for mine, reference in zip(
        jax.tree.leaves(nnx.grad(loss, argnums=(0, 1))(narrow, x)),
        jax.tree.leaves(nnx.grad(loss, argnums=(0, 1))(exact, x)),
        strict=True,
    ):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, reference, atol=tolerance * 8)


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    x = jnp.ones((200, 200))
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
    dropped = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    assert abs((dropped == 0).mean() - 0.3) < 0.01 and abs(dropped.mean() - 1) < 0.02
    assert len(np.unique(dropped)) == 2
