"""conformer/containers: files whose length is cut, left open, or wrong, in every container that gives one."""

import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformer.audio import AudioError, audio_seconds, load_audio, read_audio, read_stream
from conformer.containers import HEAD_BYTES, is_container, mpeg

RATE = 8_000
KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_24"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "GSM610"),
    ("WAVEX", "FLOAT"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("SVX", "PCM_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]
SPEECH = np.random.default_rng(0).normal(0, 0.1, RATE).clip(-0.9, 0.9)


def written(folder, kind: tuple[str, str], samples=SPEECH, rate=RATE, **options) -> bytes:
    path = folder / "written"
    soundfile.write(path, samples, rate, format=kind[0], subtype=kind[1], **options)
    return path.read_bytes()


def read(path, data: bytes) -> np.ndarray:
    """The samples of a file with these bytes, the same through a pipe."""
    path.write_bytes(data)
    outcomes = []
    for blocks in (read_audio(path, RATE), read_stream(io.BytesIO(data), str(path), RATE, 0.1)):
        try:
            outcomes.append(np.concatenate(list(blocks)))
        except AudioError as error:
            outcomes.append(error)
    whole, piped = outcomes
    if isinstance(whole, AudioError):
        assert isinstance(piped, AudioError) and str(path) in str(whole) and str(path) in str(piped)
        raise whole
    np.testing.assert_allclose(whole, piped, atol=1e-6)
    return whole


# ------------------------------------------------------------------------ cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_an_error_wherever_it_is_cut(tmp_path, kind):
    data = written(tmp_path, kind)
    whole = read(tmp_path / "a", data)
    for cut in {*np.random.default_rng(1).integers(1, len(data) - 1, 40), len(data) - 2}:
        with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
            read(tmp_path / "a", data[:cut])
    assert audio_seconds(tmp_path / "written") * RATE == len(whole)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] not in ("FLAC", "MP3", "OGG")])
def test_half_of_a_file_is_called_truncated(tmp_path, kind):
    data = written(tmp_path, kind)
    with pytest.raises(AudioError, match="truncated, it ends before"):
        read(tmp_path / "a", data[: len(data) // 2])


@pytest.mark.parametrize("kind", [("RIFF", "BIG"), ("FORM", "LITTLE"), (".snd", "LITTLE")])
def test_either_order_of_bytes(tmp_path, kind):
    names = {"RIFF": "WAV", "FORM": "AIFF", ".snd": "AU"}
    data = written(tmp_path, (names[kind[0]], "PCM_16"), endian=kind[1])
    assert len(read(tmp_path / "a", data)) == RATE
    with pytest.raises(AudioError, match="truncated"):
        read(tmp_path / "a", data[:-100])


# ------------------------------------------------------------ sizes left open

OPEN = [0, 0xFFFF_FFFF_FFFF_FFFF, 0x7FFF_FFFF_7FFF_FFFF]


def with_size(data: bytes, size: int) -> bytes:
    """A file whose header gives this size, cut to the bits there are, as writers to a pipe leave it."""
    fields = {
        b"RIFF": [(4, "<I"), (data.find(b"data") + 4, "<I")],
        b"RF64": [(20, "<Q"), (28, "<Q")],
        b"FORM": [(4, ">I"), (max(data.find(b"SSND"), data.find(b"BODY")) + 4, ">I")],
        b".snd": [(8, ">I")],
        b"dns.": [(8, "<I")],
        b"caff": [(data.find(b"data", 8) + 4, ">Q")],
        b"riff": [(16, "<Q"), (data.find(b"data") + 16, "<Q")],
    }
    out = bytearray(data)
    for offset, form in fields[data[:4]]:
        struct.pack_into(form, out, offset, size & ((1 << 8 * struct.calcsize(form)) - 1))
    return bytes(out)


@pytest.mark.parametrize("size", OPEN)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] not in ("FLAC", "MP3", "OGG", "NIST")])
def test_a_size_that_is_left_open_is_read_to_the_end(tmp_path, kind, size):
    data = written(tmp_path, kind)
    samples = read(tmp_path / "a", with_size(data, size))
    expected = read(tmp_path / "b", data)
    if kind[1] in ("IMA_ADPCM", "GSM610"):  # in whole blocks; WAV may end with a byte of padding
        assert len(samples) - len(expected) in range(400)
        samples = samples[: len(expected)]
    np.testing.assert_array_equal(samples, expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] in ("WAV", "AIFF", "AU", "CAF", "W64", "RF64")])
def test_a_size_that_is_too_small_loses_nothing_silently(tmp_path, kind):
    data = with_size(written(tmp_path, kind), 100)
    with pytest.raises(AudioError, match="holds more than its header says"):
        read(tmp_path / "a", data)


def test_the_size_of_the_whole_does_not_count_where_the_audio_is_whole(tmp_path):
    data = bytearray(written(tmp_path, ("WAV", "PCM_16")))
    for size in (0, 36, len(data) + 16, 0xFFFF_FFFF):
        struct.pack_into("<I", data, 4, size)
        assert len(read(tmp_path / "a", bytes(data))) == RATE


def test_chunks_padding_and_tags_behind_the_audio_do_no_harm(tmp_path):
    data = written(tmp_path, ("WAV", "PCM_16"))
    notes = b"LIST" + struct.pack("<I", 3_000) + b"INFO" + bytes(2_996)
    for behind in (b"\0" * 5_000, notes, notes + notes, b"TAG" + b"x" * 2_000, b"x" * 100):
        assert len(read(tmp_path / "a", data + behind)) == RATE
    before = data[:12] + b"LIST" + struct.pack("<I", 4_001) + b"x" * 4_002 + data[12:]
    assert len(read(tmp_path / "a", before)) == RATE


def test_a_last_byte_without_its_partner_may_lack_its_padding(tmp_path):
    """The chunk behind it then begins at an odd byte, which no rule allows, but some writers do."""
    data = written(tmp_path, ("WAV", "PCM_U8"), SPEECH[:-1])
    end, notes = data.index(b"data") + 8 + RATE - 1, b"LIST" + struct.pack("<I", 3_000) + b"INFO" + bytes(2_996)
    for padding in (b"", b"\0"):
        assert len(read(tmp_path / "a", data[:end] + padding + notes + notes)) == RATE - 1


def test_a_second_chunk_of_audio_is_an_error(tmp_path):
    data = written(tmp_path, ("WAV", "PCM_16"))
    with pytest.raises(AudioError, match="holds more than its header says"):
        read(tmp_path / "a", data + data[data.index(b"data") :])


def test_samples_may_be_wider_than_their_bits(tmp_path):
    """24 bits in 4 bytes each: the header gives both, and the decoder tells by the samples how to take them."""
    samples = np.round(SPEECH * 2**23).astype(np.int32) << 8
    data = bytearray(written(tmp_path, ("WAV", "PCM_32"), samples))
    at = data.index(b"fmt ") + 8
    expected = read(tmp_path / "a", bytes(data))
    assert struct.unpack_from("<HH", data, at + 12) == (4, 32)
    struct.pack_into("<H", data, at + 14, 24)
    np.testing.assert_array_equal(read(tmp_path / "a", bytes(data)), expected)


def test_mp3_in_wav_is_read_from_a_pipe_too(tmp_path):
    sound = written(tmp_path, ("MP3", "MPEG_LAYER_III"))
    layout = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 1_000, 1, 0, 12, 1, 2, 144, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(sound)) + sound
    assert len(read(tmp_path / "a", b"RIFF" + struct.pack("<I", len(chunks)) + chunks)) == RATE


TAG = b"ID3\4\0\0\0\0\1\0" + bytes(128)


@pytest.mark.parametrize("kind", [(kind, "PCM_16") for kind in ("WAV", "AIFF", "AU", "FLAC", "CAF")])
def test_a_tag_before_the_container_is_no_part_of_it(tmp_path, kind):
    data = written(tmp_path, kind)
    np.testing.assert_array_equal(read(tmp_path / "a", TAG + TAG + data), read(tmp_path / "b", data))
    assert audio_seconds(tmp_path / "a") == 1.0
    with pytest.raises(AudioError, match=r"truncated|decoded"):
        read(tmp_path / "a", TAG + data[: len(data) // 2])


def test_an_empty_file_with_a_header_holds_no_samples(tmp_path):
    for kind in (("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16")):
        with pytest.raises(AudioError, match="holds no samples"):
            read(tmp_path / "a", written(tmp_path, kind, SPEECH[:0]))


# ----------------------------------------------------------------------- FLAC


def with_total(data: bytes, total: int) -> bytes:
    (packed,) = struct.unpack_from(">Q", data, 18)
    return data[:18] + struct.pack(">Q", packed >> 36 << 36 | total) + data[26:]


@pytest.mark.parametrize("length", [1, 15, 4_095, 4_096, 4_097, 60_000])
@pytest.mark.parametrize("total", ["open", "less"])
def test_flac_is_read_to_its_last_frame(tmp_path, length, total):
    samples = np.resize(SPEECH, length)
    data = written(tmp_path, ("FLAC", "PCM_16"), samples)
    expected = read(tmp_path / "a", data)
    assert len(expected) == length
    wrong = 0 if total == "open" else max(1, length // 2)
    np.testing.assert_array_equal(read(tmp_path / "a", with_total(data, wrong)), expected)
    assert audio_seconds(tmp_path / "a") == length / RATE


def test_flac_with_a_tag_before_it_or_something_behind(tmp_path):
    data = written(tmp_path, ("FLAC", "PCM_16"))
    expected = read(tmp_path / "a", data)
    for file in (TAG + with_total(data, 0), TAG + with_total(data, 100), with_total(data, 0) + bytes(300)):
        np.testing.assert_array_equal(read(tmp_path / "a", file), expected)
    for behind in (b"TAG" + bytes(125), bytes(5_000), b"x" * 100):
        np.testing.assert_array_equal(read(tmp_path / "a", data + behind), expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_flac_that_promises_more_is_an_error_and_so_is_an_open_one_that_is_cut(tmp_path, channels):
    data = written(tmp_path, ("FLAC", "PCM_16"), np.stack([SPEECH] * channels, 1))
    with pytest.raises(AudioError, match="truncated"):
        read(tmp_path / "a", with_total(data, RATE + 1_000))
    frames = data.index(b"\xff\xf8")
    for cut in (len(data) - 1, len(data) // 2, frames + 3, frames + 1, frames, 60, 30):
        with pytest.raises(AudioError, match="truncated"):
            read(tmp_path / "a", with_total(data, 0)[:cut])


# ------------------------------------------------------------------------ MP3


def without_first_frame(data: bytes) -> bytes:
    frame = mpeg.frame_at(data, 0)
    assert frame is not None and (b"Xing" in data[: frame.length] or b"Info" in data[: frame.length])
    return data[frame.length :]


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_gives_all_samples_with_a_count_of_frames_or_without(tmp_path, rate, mode, channels):
    samples = np.stack([np.concatenate([np.zeros(2 * rate), np.resize(SPEECH, 2 * rate)])] * channels, 1)
    data = written(tmp_path, ("MP3", "MPEG_LAYER_III"), samples, rate, bitrate_mode=mode)
    assert len(read(tmp_path / "a", data)) == 4 * RATE
    bare = without_first_frame(data)
    tags = b"ID3\4\0\0\0\0\1\0" + bytes(128), b"TAG" + bytes(125)
    footed = b"ID3\4\0\x10\0\0\1\0" + bytes(128) + b"3DI\4\0\x10\0\0\1\0"
    longer = b"ID3\3\0\0\0\0\0\xc8" + bytes(200)  # its size is written as no tag's may be
    for file in (tags[0] + data, footed + data, longer + data, data + bytes(5_000)):
        np.testing.assert_array_equal(read(tmp_path / "b", file), read(tmp_path / "a", data))
    for file in (bare, tags[0] + bare, bare + tags[1], bare + tags[1] + bare):
        heard = read(tmp_path / "a", file)
        extra = len(heard) / RATE - 4 * (1 + (file.count(bare) > 1))
        assert 0 <= extra < 0.3 and audio_seconds(tmp_path / "a") == pytest.approx(len(heard) / RATE, abs=1e-3)
    frame = mpeg.frame_at(bare, 0)
    assert frame is not None
    for cut in (bare[:-10], bare[: frame.length + 2]):
        with pytest.raises(AudioError, match=r"truncated|begins like no"):
            read(tmp_path / "a", cut)


def test_mp3_that_changes_its_rate_is_an_error(tmp_path):
    one, other = (written(tmp_path, ("MP3", "MPEG_LAYER_III"), SPEECH, rate) for rate in (8_000, 16_000))
    with pytest.raises(AudioError, match="holds more than its header says"):
        read(tmp_path / "a", one + other)


# ----------------------------------------------------- files behind each other


@pytest.mark.parametrize("kind", [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_streams_behind_each_other_are_all_read(tmp_path, kind):
    first, second = written(tmp_path, kind), written(tmp_path, kind, np.resize(SPEECH, 2 * RATE))
    assert 0 <= len(read(tmp_path / "a", first + second + first)) - 4 * RATE < 0.4 * RATE


@pytest.mark.parametrize("kind", [(kind, "PCM_16") for kind in ("WAV", "AIFF", "AU", "FLAC", "NIST")])
def test_files_behind_each_other_are_an_error(tmp_path, kind):
    data = written(tmp_path, kind)
    with pytest.raises(AudioError, match="split what was joined"):
        read(tmp_path / "a", data + data)


def test_ogg_without_one_of_its_pages_is_an_error(tmp_path):
    data = written(tmp_path, ("OGG", "VORBIS"), np.resize(SPEECH, 10 * RATE))
    pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    assert len(read(tmp_path / "a", data + bytes(5_000))) == 10 * RATE
    with pytest.raises(AudioError, match="lacks pages"):
        read(tmp_path / "a", data[: pages[2]] + data[pages[3] :])


# -------------------------------------------------------------- any bytes


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_header_with_other_bytes_gives_samples_or_one_error(tmp_path, kind, data):
    file = bytearray(written(tmp_path, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, min(200, len(file) - 1)))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutated"
    path.write_bytes(file)
    for blocks in (read_audio(path, RATE), read_stream(io.BytesIO(bytes(file)), "pipe", RATE, 0.1)):
        try:
            for samples in blocks:
                assert np.isfinite(samples).all() and np.abs(samples).max() <= 1
        except AudioError as error:
            assert str(error).startswith((str(path), "pipe"))


@given(
    st.binary(max_size=3_000), st.sampled_from([b"", b"RIFF", b"OggS", b"fLaC", b"ID3", b"\xff\xfb\x90\xc4", b"caff"])
)
def test_a_few_bytes_never_break_a_reader(data, magic):
    try:
        list(read_stream(io.BytesIO(magic + data), "pipe", RATE, 0.1))
    except AudioError as error:
        assert str(error).startswith("pipe: ")


# ---------------------------------------------------- what is no regular file


@pytest.fixture
def fifo(tmp_path):
    """Feeds bytes into a named pipe."""
    path, threads = tmp_path / "fifo", []

    def feed(data: bytes):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        threads.append(threading.Thread(target=path.write_bytes, args=(data,), daemon=True))
        threads[-1].start()
        return path

    yield feed
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("kind", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_a_named_pipe_is_read_as_the_file_is(tmp_path, fifo, kind):
    data = written(tmp_path, kind)
    np.testing.assert_array_equal(load_audio(fifo(data), RATE), read(tmp_path / "a", data))
    with pytest.raises(AudioError, match=r"truncated|decoded"):
        load_audio(fifo(data[: len(data) // 2]), RATE)


def test_a_wav_stream_is_heard_while_it_is_written(tmp_path):
    data = with_size(written(tmp_path, ("WAV", "PCM_16"), np.stack([SPEECH, SPEECH], 1), 2 * RATE), 0xFFFF_FFFF)
    given = 0

    class Live:
        def read(self, count):
            nonlocal given
            given += count
            assert given < len(data) or count <= len(data), "it was read to the end first"
            return data[given - count : given]

    blocks = read_stream(Live(), "pipe", RATE, 0.1)
    first = next(blocks)
    assert given < len(data) / 2 and len(first) < 0.2 * RATE


@pytest.mark.parametrize("path", ["/proc/self/mem", "/dev/null", "/dev/zero", "/dev/urandom"])
def test_devices_are_one_error(path):
    if not os.path.exists(path):
        pytest.skip(f"this system has no {path}")
    with pytest.raises(AudioError, match=path):
        load_audio(path, RATE)


# ------------------------------------------------------------------------ raw


@given(st.binary(min_size=HEAD_BYTES, max_size=5_000))
def test_samples_are_not_taken_for_a_container(data):
    known = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b"riff", b"fLaC", b"OggS", b".snd", b"dns.", b"NIST")
    if not data.startswith((*known, b"ID3", b"\x1aE\xdf\xa3", b"0&\xb2u", b"#!AMR")) and data[4:8] != b"ftyp":
        frame = mpeg.frame_at(data, 0)
        following = None if frame is None else mpeg.frame_at(data, frame.length)
        assert is_container(data) == (frame is not None and following is not None and following.kind == frame.kind)
