"""Imported checkpoints against what their reference implementations computed: features, encoder, log-probabilities."""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conformer.checkpoints.convert import read_checkpoint
from conformer.checkpoints.units import blank_first
from conformer.features import log_mel
from conformer.filterbank import StreamingLogMel
from conformer.model.layouts import EXECUTIONS
from conformer.numerics import apply_policy
from conformer.streaming import windows_of
from conformer.streaming.engine import Engine
from conformer.streaming.windows import Windows
from conformer.training.checkpoint import load_model

WENET, PARAKEET = "wenet_u2pp_conformer", "hf_parakeet_ctc"
CONFORMER, FASTCONFORMER = "nemo_conformer_ctc/model.nemo", "nemo_fastconformer_streaming/model.nemo"
CHECKPOINTS = (WENET, PARAKEET, CONFORMER, FASTCONFORMER)
STREAMING = ((WENET, 16, 4), (WENET, 4, 2), (FASTCONFORMER, 4, 2), (FASTCONFORMER, 2, 4), (FASTCONFORMER, 1, 8))


class Golden(NamedTuple):
    """The results of a reference, frames before channels."""

    audio: np.ndarray
    audio_lengths: np.ndarray
    features: np.ndarray
    feature_lengths: np.ndarray
    lengths: np.ndarray
    outputs: dict  # (chunk_size, num_left_chunks) -> encoder outputs and log-probabilities
    streams: dict  # the same for each utterance by itself: its features, and what the reference's own streaming gave


@functools.cache
def imported(path: pathlib.Path, workdir: pathlib.Path):
    if not (workdir / "config.json").exists():
        read_checkpoint(path).save(workdir)
    return load_model(workdir)


@pytest.fixture(scope="module")
def load(golden, tmp_path_factory):
    """The work directory of a checkpoint, loaded as any script does it, with what the reference computed."""
    folder = tmp_path_factory.mktemp("imports")

    def of(name):
        config, model, tokenizer, _ = imported(golden / name, folder / name.split("/")[0])
        return config, model, tokenizer, read_golden(golden / name, config.model.vocab_size)

    return of


def read_golden(path: pathlib.Path, units: int) -> Golden:
    folder = path if path.is_dir() else path.parent
    nemo, stored = path.suffix == ".nemo", np.load(folder / "golden.npz")
    lengths = stored["audio_lengths"]
    audio = np.zeros((len(lengths), lengths.max()), np.float32)
    for row, length in enumerate(lengths):
        audio[row, :length] = stored[f"audio_{row}"] / np.float32(32768)
    blank = 0 if folder.name == WENET else units - 1

    def pair(prefix, suffix=""):
        encoder, log_probs = stored[f"{prefix}encoder_output{suffix}"], stored[f"{prefix}log_probs{suffix}"]
        encoder = encoder.swapaxes(-1, -2) if nemo else encoder
        return encoder, log_probs[..., blank_first(units, blank)]

    if folder.name == WENET:
        names = {(0, -1): "full_", (16, 4): "chunk16_left4_", (16, -1): "chunk16_leftall_", (4, 2): "chunk4_left2_"}
    elif path.parent.name == "nemo_fastconformer_streaming":
        names = {(4, 2): "ctx8_3_", (2, 4): "ctx8_1_", (1, 8): "ctx8_0_"}
    else:
        names = {(0, -1): ""}
    features = stored["input_features" if folder.name == PARAKEET else "features"]
    features = features.swapaxes(1, 2) if nemo else features
    feature_lengths = stored["feature_lengths"].astype(np.int32)

    def fed(row):
        """Returns the features that the reference's stream read."""
        return stored[f"stream_features_{row}"].T if nemo else features[row, : feature_lengths[row]]

    streamed = {"chunk16_left4_": "stream16_left4_", "chunk4_left2_": "stream4_left2_"}
    streamed |= {name: f"{name}stream_" for name in names.values() if name.startswith("ctx")}
    return Golden(
        audio,
        lengths.astype(np.int32),
        features,
        feature_lengths,
        stored["output_lengths"],
        {chunks: pair(name) for chunks, name in names.items()},
        {
            chunks: [(fed(row), *pair(streamed[name], f"_{row}")) for row in range(len(lengths))]
            for chunks, name in names.items()
            if name in streamed
        },
    )


def valid(array: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return array[np.arange(array.shape[1]) < np.asarray(lengths)[:, None]]


@functools.cache
def forward(model, execution="sequence"):
    """Encoder outputs and log-probabilities under a chunk mask, compiled once for all of them."""
    model = nnx.clone(model)
    model.encoder.layout = EXECUTIONS[execution]
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(features, lengths, chunk_size, num_left_chunks):
        model = nnx.merge(graphdef, state)
        features = model.standardise(features)
        x, lengths = model.encoder(features, lengths, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
        return x, model.log_softmax(model.head(x)), lengths

    return run


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_features_are_those_of_the_reference(load, name):
    """Compares the features of a padded batch, and of streams in pieces.

    A spectrum of float32 (of unit roundoff u) errs by about u times the frame's amplitude in every bin, so a filter
    with a share s of the frame's energy is known up to u / sqrt(s): more than 1e-3 below a share of 4e-9 (-84 dB).
    """
    config, _, _, golden = load(name)
    features, lengths = jax.jit(lambda *batch: log_mel(config.features, *batch))(golden.audio, golden.audio_lengths)
    assert list(lengths) == list(golden.feature_lengths)
    expected = valid(golden.features, golden.feature_lengths)
    known = np.full_like(expected, 1e-3)
    if name == WENET:  # the others add a constant to quiet energies, 2^-24
        share = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        known = np.maximum(known, 2.0**-24 / np.sqrt(share))
    assert (np.abs(valid(np.asarray(features), lengths) - expected) < known).all()
    streamed = []
    for samples, length in zip(golden.audio, golden.audio_lengths, strict=True):
        stream = StreamingLogMel(config.features)
        pieces = np.split(samples[:length], [0, 1, 170, 5_000, 5_003, 20_000])
        streamed += [*map(stream.accept, pieces), stream.flush()]
    assert (np.abs(np.concatenate(streamed) - expected) < known).all()


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.slow_but(
    "wenet_u2pp_conformer-sequence",
    "hf_parakeet_ctc-channels_first",
    "nemo_conformer_ctc/model.nemo-channels_first",
    "nemo_fastconformer_streaming/model.nemo-sequence",
)
def test_the_encoder_and_the_head_are_those_of_the_reference(load, name, execution):
    """Both start from the reference's features, with every chunk mask that it computed."""
    _, model, _, golden = load(name)
    for chunks, (encoder_output, log_probs) in golden.outputs.items():
        found = forward(model, execution)(golden.features, golden.feature_lengths, *map(np.int32, chunks))
        assert list(found[2]) == list(golden.lengths)
        for mine, reference in zip(found, (encoder_output, log_probs), strict=False):
            expected = valid(reference, golden.lengths)
            np.testing.assert_allclose(valid(np.asarray(mine), golden.lengths), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name, chunk_size, num_left_chunks", STREAMING)
def test_streams_are_the_masked_whole(load, name, chunk_size, num_left_chunks):
    """Hence streams give what the reference gives, from its first frame to its last, in every chunk size."""
    config, model, _, golden = load(name)
    engine = Engine(config, model, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
    arguments = golden.features, golden.feature_lengths, np.int32(chunk_size), np.int32(num_left_chunks)
    whole = np.asarray(forward(model)(*arguments)[1])
    for row, length in enumerate(golden.feature_lengths):
        engine.reset()
        chunks = []
        for window in windows_of_features(engine.framing, golden.features[row, :length]):
            chunks.append(
                engine(window.features[None], np.full(1, window.num_frames, np.int32))[0, : window.num_frames]
            )
        found = np.concatenate(chunks)
        assert len(found) == golden.lengths[row]
        np.testing.assert_allclose(found, whole[row, : len(found)], rtol=0, atol=1e-5)
        reference = golden.outputs[chunk_size, num_left_chunks][1][row, : len(found)]
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, chunk_size, num_left_chunks", STREAMING)
@pytest.mark.slow_but("wenet_u2pp_conformer-4-2", "nemo_fastconformer_streaming/model.nemo-2-4")
def test_streams_are_those_of_the_reference(load, name, chunk_size, num_left_chunks):
    """Each frame that the reference's own streaming gave, with what NeMo's counts differently told to ours.

    NeMo hears one frame of zeros more behind an utterance, and eight before the second chunk where nothing is seen
    ahead; and it leaves out a rest of fewer than eight feature frames. (Here a frame of zeros alone lies outside.)
    """
    config, model, _, golden = load(name)
    dim, both = config.model.encoder_dim, nnx.clone(model)  # gives the encoder's outputs before the log-probabilities
    both.head.kernel = nnx.Param(np.concatenate([np.eye(dim, dtype=np.float32), model.head.kernel[...]], axis=1))
    both.head.bias = nnx.Param(np.concatenate([np.zeros(dim, np.float32), model.head.bias[...]]))
    both.log_softmax = lambda x: jnp.concatenate([x[..., :dim], model.log_softmax(x[..., dim:])], axis=-1)
    engine = Engine(config, both, chunk_size=chunk_size, num_left_chunks=num_left_chunks)
    almost_zero = np.float32(1e-30)
    for features, *references in golden.streams[chunk_size, num_left_chunks]:
        heard = np.where(features.any(axis=1, keepdims=True), features, almost_zero)
        windows = [(w.features.copy(), w.num_frames) for w in windows_of_features(engine.framing, heard)]
        if name == FASTCONFORMER and chunk_size == 1:
            windows[1][0][: engine.framing.lengths.lead - engine.framing.shift] = almost_zero
        engine.reset()
        found = np.concatenate([engine(w[None], np.full(1, count, np.int32))[0, :count] for w, count in windows])
        expected = np.concatenate(references, axis=1)
        assert 0 <= engine.framing.num_frames(len(features)) - len(expected) <= (name == FASTCONFORMER)
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=1e-4)


def windows_of_features(framing, features):
    """Returns the windows of a recording that has the given features."""

    class Given:
        received, levels = 0, np.zeros(0, np.float32)

        def accept(self, samples):
            return features[:0]

        def flush(self):
            return features

    windows = Windows(framing)
    windows._features = Given()  # pyright: ignore[reportAttributeAccessIssue]
    windows.end()
    while (window := windows.next_window()) is not None:
        yield window


def test_audio_streams_through_the_whole_of_it(load):
    """A stream from samples has as many frames as the whole, and the same best units where features differ a little."""
    config, model, _, golden = load(FASTCONFORMER)
    engine = Engine(config, model, chunk_size=4, num_left_chunks=2)
    found = [
        engine(window.features[None], np.full(1, window.num_frames, np.int32))[0, : window.num_frames]
        for window in windows_of(engine.framing, golden.audio[0, : golden.audio_lengths[0]])
    ]
    np.testing.assert_allclose(np.concatenate(found), golden.outputs[4, 2][1][0, : golden.lengths[0]], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("policy, largest", [("bfloat16", 0.05), ("int8", 0.2)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_policies_change_little(load, name, policy, largest):
    """A log-probability, by what linear maps lose: weights of every kind, that of positions too."""
    _, model, _, golden = load(name)
    chunks = next(iter(golden.outputs))
    arguments = golden.features[:1, :120], np.array([120], np.int32), *map(np.int32, chunks)
    exact, narrow = (np.asarray(forward(version)(*arguments)[1]) for version in (model, apply_policy(model, policy)))
    assert 0 < np.abs(narrow - exact).max() < largest
