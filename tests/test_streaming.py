"""Streams: words and their times, endpoints, many at once, and uses that cannot be served."""

import jax
import numpy as np
import pytest
from flax import nnx
from small_model import RATE, TOKENIZER, make_config, make_model, sound

from conformer.config import FeatureConfig
from conformer.data import Pcm, Utterance
from conformer.decode.greedy import Decoder, GreedyDecoder, Token
from conformer.decode.prefix_beam import PrefixBeamDecoder
from conformer.evaluation.offline import make_forward, posteriors
from conformer.filterbank import StreamingLogMel
from conformer.lengths import PADDINGS, Lengths
from conformer.streaming import (
    EndpointConfig,
    Framing,
    Recognizer,
    StreamError,
    StreamPool,
    Transcript,
    Windows,
    log_probs_of,
    windows_of,
)
from conformer.streaming.engine import Engine

CHUNK, LEFT = 4, 2
FRAME = 0.04  # seconds of an encoder frame
FRAMING = Framing(make_config().features, Lengths(4, 3), CHUNK)


def engine(**options) -> Engine:
    return Engine(*make_model(causal_conv=True), chunk_size=CHUNK, num_left_chunks=LEFT, **options)


def recognizer(**options) -> Recognizer:
    return Recognizer(engine(), TOKENIZER, **options)


def transcript(samples) -> list:
    stream = recognizer()
    stream.accept(samples)
    stream.finish()
    return stream.segments


class Scripted(Decoder):
    """A decoder that says what a test wants, whatever it hears; "f" at the start of further utterances."""

    def __init__(self, script: dict[int, str]):
        self._script, self._frames, self._tokens = script, 0, []

    def forget(self, count):
        del self._tokens[:count]

    def restart(self):
        self._tokens, self._script = [], {self._frames: "f"}

    def step(self, log_probs):
        frames = range(self._frames, self._frames + len(log_probs))
        new = [Token(TOKENIZER.symbols.index(self._script[f]), f, 0.0) for f in frames if f in self._script]
        self._frames += len(log_probs)
        self._tokens += new
        return new

    tokens = property(lambda self: list(self._tokens))
    num_stable = property(lambda self: len(self._tokens))

    def finish(self):
        return self.tokens


def scripted(script, *, seconds, endpoint=None) -> Transcript:
    """Returns the transcript of a stream whose decoder follows `script`."""
    transcript = Transcript(TOKENIZER, FRAMING, decoder=lambda: Scripted(script), endpoint=endpoint)
    for frames in np.split(
        np.zeros((round(seconds / FRAME), TOKENIZER.vocab_size), np.float32), range(CHUNK, 50, CHUNK)
    ):
        transcript.decode(frames, np.zeros(4 * len(frames), np.float32))  # loudness that says nothing
    transcript.finish()
    return transcript


# ------------------------------------------------------------------ the two halves


@pytest.mark.parametrize("factor", [4, 6, 8])
def test_framing_counts_frames_as_the_front_end_does(factor):
    config, model = make_model(factor=factor, causal_conv=True)
    front_end, framing = model.encoder.subsampling, Engine(config, model, chunk_size=CHUNK).framing
    assert (framing.window, framing.frame_seconds) == (front_end.window(CHUNK), factor / 100)
    for length in range(4 * factor * CHUNK):
        assert framing.num_frames(length) == front_end.output_lengths(length)


@pytest.mark.parametrize(
    "framing",
    [
        Framing(make_config().features, Lengths(4, 6), 4),
        Framing(make_config().features, Lengths(6, 5), 3),
        Framing(make_config().features, Lengths(4, 6), 2, look_ahead=3),
    ],
)
def test_windows_hold_the_features_of_the_whole_however_the_audio_is_cut(framing):
    samples = sound(11_111)
    front_end = StreamingLogMel(framing.features)
    silence = np.zeros(RATE // 2, np.float32)  # follows the audio
    whole = np.concatenate([front_end.accept(np.concatenate([samples, silence])), front_end.flush()])
    expected = list(windows_of(framing, samples))
    counts = [min(window.num_frames, framing.chunk_size) for window in expected]
    assert sum(counts) == framing.num_frames(len(whole))
    for index, window in enumerate(expected):
        features = whole[index * framing.shift :][: framing.window]
        assert window.features.shape == (framing.window, framing.features.num_mel_bins)
        np.testing.assert_allclose(window.features[: len(features)], features, rtol=1e-6)
        assert not window.features[len(features) :].any()
    windows, found = Windows(framing), []
    for piece in np.array_split(samples, 13):
        windows.accept(piece)
        while (window := windows.next_window()) is not None:
            found.append(window)
    windows.end()
    while (window := windows.next_window()) is not None:
        found.append(window)
    assert windows.finished and len(found) == len(expected)
    for mine, theirs, count in zip(found, expected, counts, strict=True):
        assert mine.num_frames == theirs.num_frames
        np.testing.assert_allclose(mine.features, theirs.features, rtol=1e-6)
        np.testing.assert_allclose(mine.levels, theirs.levels, rtol=1e-5)
        assert len(mine.levels) == count * framing.subsampling_factor


def test_a_stream_hears_what_is_heard_of_the_whole_utterance():
    """The audio is heard, and the silence behind it."""
    config, model = make_model(causal_conv=True)
    samples = (sound(9_321) * 32_768).astype(np.int16)
    utterance = Utterance("u", "", "", "test", len(samples) / RATE, Pcm(samples, RATE))
    graphdef, params, statistics = nnx.split(model, nnx.Param, ...)
    forward, broken = make_forward(config, graphdef), {}
    context = dict(chunk_size=CHUNK, num_left_chunks=LEFT)
    ((_, whole),) = posteriors(config, forward, params, statistics, [utterance], broken, **context)
    stepper = engine()
    found = log_probs_of(stepper, windows_of(stepper.framing, utterance.samples(RATE)))
    assert len(whole) == stepper.framing.num_frames(round(100 * (len(samples) / RATE + 0.5)))
    np.testing.assert_allclose(found, whole, atol=1e-5)


class Loudness:
    """A stepper that is no network: "a" where a window is louder than the one before it in the same stream."""

    batch_size, state_bytes = 2, 4

    def __init__(self):
        self.framing = Framing(make_config().features, Lengths(4, 3), 4)
        self.reset()

    def __call__(self, windows, num_frames, fresh=None):
        self._last[fresh] = -np.inf
        loudness = windows.mean(axis=(1, 2))
        log_probs = np.full((2, self.framing.chunk_size, TOKENIZER.vocab_size), -9.0, np.float32)
        log_probs[:, :, 0] = -1.0
        log_probs[loudness > self._last, 0, TOKENIZER.symbols.index("a")] = 0.0
        self._last = np.where(num_frames > 0, loudness, self._last)
        return log_probs

    def reset(self):
        self._last = np.full(2, -np.inf)

    def warm_up(self):
        pass


def test_whatever_steps_windows_can_be_recognised_with():
    """One stream after the other in the slots of a pool, and the same in a recogniser: text and times."""
    loudness = [1.0, 0.01, 0.1, 0.1]  # of 160 ms each
    samples = np.concatenate([level * sound(1_280) for level in loudness])
    alone = Recognizer(Loudness(), TOKENIZER)
    for _ in range(2):
        alone.reset()
        alone.accept(samples)
        alone.finish()
        assert alone.text.startswith("aa") and alone.words[0].start == 0.0
    pool = StreamPool(Loudness(), TOKENIZER)
    for _ in range(2):
        streams = [pool.open(), pool.open()]
        for stream, piece in zip(streams, (samples, samples[::-1]), strict=True):
            stream.accept(piece)
            stream.end()
        while pool.step():
            pass
        assert streams[0].transcript.segments == alone.segments != streams[1].transcript.segments


# ----------------------------------------------------------- text, words, times


class Deaf:
    """A stepper that is no network and hears nothing: a decoder says what was spoken."""

    batch_size, state_bytes = 1, 0

    def __init__(self, framing):
        self.framing = framing

    def __call__(self, windows, num_frames, fresh=None):
        return np.zeros((1, self.framing.chunk_size, TOKENIZER.vocab_size), np.float32)

    def reset(self):
        pass

    def warm_up(self):
        pass


NEMO = dict(kind="nemo", window="hann", low_freq=0.0, high_freq=8_000.0, fft_size=512)


@pytest.mark.parametrize("level", [0.3, 0.003])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("front_end", [{}, dict(kind="kaldi_snipped"), NEMO, NEMO | dict(normalise=True)])
def test_words_have_the_times_of_their_sound_with_every_front_end(front_end, padding, level):
    """Tones in faint noise, behind digital silence."""
    features, lengths = FeatureConfig(**front_end), Lengths(8, 14, padding)
    framing = Framing.of_whole(features, lengths, 4.0) if features.normalise else Framing(features, lengths, CHUNK)
    samples, borders = np.zeros(56_000, np.float32), [(0.9, 1.4), (1.7, 2.2), (2.6, 3.0)]
    samples[5_000:] = 1e-4 * level * np.random.default_rng(0).standard_normal(51_000)
    for first, last in borders:
        places = np.arange(round(first * 16_000), round(last * 16_000))
        samples[places] += level * np.sin(0.3 * places)
    script = {round(first / framing.frame_seconds) + place: "▁a"[place] for first, _ in borders for place in (0, 1)}
    recogniser = Recognizer(Deaf(framing), TOKENIZER, decoder=lambda: Scripted(script))
    for piece in np.array_split(samples, 7):
        recogniser.accept(piece)
    recogniser.finish()
    np.testing.assert_allclose([word[1:3] for word in recogniser.words], borders, atol=0.03)


def test_words_have_the_times_of_their_tokens():
    stream = scripted({2: "a", 3: "b", 10: "▁", 12: "c", 20: "▁"}, seconds=2.0)
    assert stream.text == "ab c"
    assert [word[:3] for word in stream.words] == [("ab", 2 * FRAME, 4 * FRAME), ("c", 12 * FRAME, 13 * FRAME)]
    assert [token[:2] for token in stream.segments[0].tokens][:2] == [("a", 2 * FRAME), ("b", 3 * FRAME)]


def test_silence_after_speech_ends_a_segment_and_times_go_on():
    stream = scripted({2: "a"}, seconds=2.0, endpoint=EndpointConfig(silence_after_speech=0.4))
    first, second = stream.segments[:2]
    assert first.text == "a" and second.text == "f"
    assert first.start == 0.0 and first.end == second.start
    # Frame 2 speaks; 10 silent frames end the segment, at the end of a chunk.
    assert first.end == pytest.approx(16 * FRAME)
    assert second.words[0].start == second.start
    assert stream.text.startswith("a f")


def test_a_segment_that_grows_too_long_ends_at_its_last_word_boundary():
    script = {frame: "ab▁"[frame % 3] for frame in range(0, 200)}
    stream = scripted(script, seconds=2.0, endpoint=EndpointConfig(longest=0.8, silence_after_speech=9.0))
    first, second = stream.segments[:2]
    assert first.text.split() == ["ab"] * 6 and first.end == second.start == pytest.approx(17 * FRAME)
    assert second.text.split()[0] == "ab" and second.words[0].start == pytest.approx(18 * FRAME)
    assert stream.text == scripted(script, seconds=2.0).text


def test_a_word_without_end_is_cut():
    script = {frame: "ab"[frame % 2] for frame in range(0, 200)}
    stream = scripted(script, seconds=2.0, endpoint=EndpointConfig(longest=0.4, grace=0.4, silence_after_speech=9.0))
    assert stream.segments[0].end == pytest.approx(0.8)


def test_a_segment_that_is_not_sure_enough_is_left_out():
    frames, levels = np.full((CHUNK, TOKENIZER.vocab_size), -2.0, np.float32), np.zeros(4 * CHUNK, np.float32)
    for least, texts in ((0.1, ["a"]), (0.2, [])):
        stream = Transcript(TOKENIZER, FRAMING, min_confidence=least)
        frames[1, TOKENIZER.symbols.index("a")] = np.log(0.15)
        stream.decode(frames, levels)
        stream.finish()
        assert [segment.text for segment in stream.segments] == texts


def test_silence_alone_gives_no_segment():
    stream = scripted({}, seconds=0.9, endpoint=EndpointConfig(silence_at_start=1.0))
    assert stream.text == "" and stream.words == [] and stream.segments == []


# ------------------------------------------------------------------ many streams


@pytest.mark.slow
def test_streams_that_join_and_leave_a_pool_are_recognised_as_alone():
    pool = StreamPool(engine(batch_size=3), TOKENIZER)
    sounds = [sound(samples, seed) for seed, samples in enumerate((9_000, 4_100, 13_333, 7_000, 2_000))]
    waiting, running, done = list(enumerate(sounds)), {}, {}
    rng = np.random.default_rng(0)
    while waiting or running:
        if waiting and pool.num_streams < 3:
            number, samples = waiting.pop(0)
            running[number] = (pool.open(), samples)
        for number, (stream, samples) in list(running.items()):
            if len(samples) == 0:
                stream.end()
            else:
                size = int(rng.integers(1, 2_500))  # streams advance at different speeds
                stream.accept(samples[:size])
                running[number] = (stream, samples[size:])
        while pool.step():
            pass
        for number, (stream, _) in list(running.items()):
            if stream.finished:
                done[number] = stream.transcript.segments
                del running[number]
    assert pool.num_streams == 0
    for number, samples in enumerate(sounds):
        assert done[number] == transcript(samples), number


def test_a_full_pool_says_so():
    pool = StreamPool(engine(), TOKENIZER)
    stream = pool.open()
    with pytest.raises(StreamError, match="all 1 slots"):
        pool.open()
    pool.abandon(stream)
    assert pool.num_streams == 0 and pool.open() is not stream


def test_a_reset_recognizer_begins_anew():
    stream = recognizer()
    stream.accept(sound(9_000, 3))
    stream.finish()
    stream.reset()
    stream.accept(sound(5_000, 4))
    stream.finish()
    assert stream.segments == transcript(sound(5_000, 4))


def test_the_state_has_the_size_that_the_configuration_says():
    config, _ = make_model(causal_conv=True)
    dim, taps, layers = config.model.encoder_dim, config.model.kernel_size, config.model.num_layers
    assert (
        engine().state_bytes
        == engine(batch_size=3).state_bytes
        == layers * 4 * (CHUNK * LEFT * 2 * dim + (taps - 1) * dim) + 4
    )


def retained(stream: Recognizer) -> tuple[int, int]:
    """Bytes of all arrays, and the number of all other objects, that a stream holds on to."""
    num_bytes, objects, waiting, seen = 0, 0, [stream.stream, vars(stream._pool._stepper)["_cache"]], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (type, type(recognizer), int, float, str)):
            continue
        seen.add(id(item))
        if isinstance(item, (np.ndarray, jax.Array)):
            num_bytes += item.nbytes
            continue
        objects += 1
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
        else:
            waiting += [getattr(item, name) for name in getattr(item, "__slots__", ())]
            waiting += getattr(item, "__dict__", {}).values()
    return num_bytes, objects


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [GreedyDecoder, PrefixBeamDecoder])
@pytest.mark.parametrize("sample_rate", [RATE, 2 * RATE])
def test_nothing_grows_with_the_length_of_a_stream_whose_segments_are_taken(decoder, sample_rate):
    endpoint = EndpointConfig(longest=2.0)
    stream = recognizer(decoder=decoder, endpoint=endpoint, sample_rate=sample_rate)
    sizes, words = [], 0
    for second in range(60):
        stream.accept(sound(sample_rate, second))
        words += sum(len(segment.words) for segment in stream.take_segments())
        sizes.append(retained(stream))
    assert words > 20  # there was something to keep
    for early, late in zip(np.max(sizes[:10], axis=0), np.max(sizes[10:], axis=0), strict=True):
        assert late <= 2 * early  # segments differ; what grew with the audio would be six times as large


def test_segments_that_are_taken_are_all_there_is():
    samples = sound(40_000, 5)
    stream, whole = (recognizer(endpoint=EndpointConfig(longest=0.8)) for _ in range(2))
    taken = []
    for piece in np.array_split(samples, 23):
        stream.accept(piece)
        taken += stream.take_segments()
        assert stream.segments == []
    whole.accept(samples)
    whole.finish()
    stream.finish()
    assert taken + stream.take_segments() == whole.segments and len(taken) > 3
    assert stream.text == "" and stream.words == []


# -------------------------------------------------------------------- bad input


class Silent(GreedyDecoder):
    """Remembers what it is given, and says nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def step(self, log_probs):
        self.seen.append(log_probs)
        return []


def test_audio_after_the_end_is_refused_and_nothing_is_lost():
    stream = recognizer()
    stream.accept(sound(6_000))
    text = stream.finish()
    with pytest.raises(StreamError, match="after the end"):
        stream.accept(sound(10))
    assert stream.finish() == text == stream.text


def test_a_change_of_rate_is_refused():
    stream = recognizer()
    stream.accept(sound(100), RATE)
    with pytest.raises(StreamError, match=f"{RATE} Hz and now sends 44100 Hz"):
        stream.accept(sound(100), 44_100)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    stream = recognizer()
    stream.accept(sound(3_000))
    with pytest.raises(StreamError, match="NaN or infinite"):
        stream.accept(np.full(4, value, np.float32))
    stream.finish()  # what came before is still recognised


@pytest.mark.parametrize(
    "form", [lambda x: (x * 32768).round().astype(np.int16), lambda x: x[:, None], lambda x: x.tolist(), np.float64]
)
@pytest.mark.slow_but("float64", "<lambda>1")
def test_samples_of_another_form_give_the_same_text(form):
    audio = (sound(8_000) * 32768).round() / np.float32(32768)
    texts = []
    for samples in (audio, form(audio)):
        stream = recognizer()
        stream.accept(samples)
        texts.append(stream.finish())
    assert texts[0] == texts[1]


def test_samples_whose_scale_is_not_clear_are_refused():
    for samples in (np.full(4, 12_000.0), np.zeros(4, np.uint8), np.zeros((4, 4, 4))):
        with pytest.raises(StreamError, match=r"pass|scaled to"):
            recognizer().accept(samples)


@pytest.mark.parametrize("samples", [0, 1, 100])
def test_next_to_no_audio_gives_no_text(samples):
    stream = recognizer()
    stream.accept(sound(samples))
    assert stream.finish() == "" and stream.segments == []


def test_digital_silence_is_recognised_like_any_other_sound():
    decoder = Silent()
    stream = recognizer(decoder=lambda: decoder)
    stream.accept(np.zeros(2 * RATE, np.float32))
    stream.finish()
    assert np.isfinite(np.concatenate(decoder.seen)).all() and stream.segments == []


def test_clipped_audio_is_recognised_like_any_other():
    stream = recognizer()
    stream.accept(np.clip(sound(6_000) * 50, -1, 1).astype(np.float32))
    assert isinstance(stream.finish(), str)


def test_another_rate_is_resampled_as_it_comes():
    stream = recognizer(sample_rate=2 * RATE)
    stream.accept(np.repeat(sound(8_000), 2))
    stream.finish()
    assert stream.stream.audio.audio_seconds == pytest.approx(1.0)
    assert stream.num_steps == pytest.approx(1.5 / FRAME / CHUNK, abs=1)  # half a second of silence follows


def test_a_chunk_size_not_trained_for_is_warned_about():
    config, model = make_model(causal_conv=True)
    with pytest.warns(UserWarning, match=r"chunk_size=5 is not one of train.chunk_sizes=\(0, 3, 4, 7\)"):
        Engine(config, model, chunk_size=5, num_left_chunks=1)
