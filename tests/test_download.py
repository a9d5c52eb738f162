"""Fetching public data sets from a server on this machine that behaves well, or badly; unpacking; Speech Commands."""

import functools
import hashlib
import http.server
import io
import json
import pathlib
import tarfile
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from conformer.data import download as module
from conformer.data import load_manifest
from conformer.data.commands import write_manifest
from conformer.data.download import DATASETS, Archive, Dataset, DownloadError, download, fetch

NO_PAUSES = (0.0,) * 4


class Host(http.server.ThreadingHTTPServer):
    """Serves `data` as /speech.tar.gz and notes the ranges asked for."""

    daemon_threads = True

    def __init__(self, data: bytes):
        super().__init__(("127.0.0.1", 0), functools.partial(Answer))
        self.data, self.tag, self.ranges = data, '"first"', []
        self.know_ranges, self.most_bytes, self.status = True, None, None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/speech.tar.gz"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host, data, start = self.server, self.server.data, 0
        host.ranges.append(asked := self.headers.get("Range"))
        if host.status:
            return self.send_error(host.status)
        if asked and host.know_ranges and self.headers.get("If-Range", host.tag) == host.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", host.tag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: host.most_bytes])  # the connection ends here, early or not

    def log_message(self, *_) -> None:
        pass


def pack(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


SPEECH = {
    "LibriSpeech/LICENSE.TXT": b"CC BY 4.0",
    "LibriSpeech/dev/1/2/1-2.trans.txt": np.random.default_rng(0).bytes(9000),
}


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(pack(SPEECH)) as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield host
        host.shutdown()
        thread.join()


def archive_of(host: Host, **changes: str) -> Archive:
    checksum = "sha256:" + hashlib.sha256(host.data).hexdigest()
    return Archive(**{"url": host.url, "checksum": checksum, "folder": "LibriSpeech/dev", "target": "L/dev"} | changes)


def try_to_fetch(host: Host, file: pathlib.Path, **changes: str) -> str:
    """The error of a fetch, on one line, which leaves no file that looks whole."""
    with pytest.raises(DownloadError) as error:
        fetch(archive_of(host, **changes), file, NO_PAUSES)
    assert not file.exists() and "\n" not in str(error.value)
    return str(error.value)


def test_a_data_set_is_fetched_checked_and_unpacked_once(host, tmp_path):
    dataset = Dataset((archive_of(host),), "CC BY 4.0", "")
    download(dataset, tmp_path)
    assert (tmp_path / "L/dev/1/2/1-2.trans.txt").read_bytes() == SPEECH["LibriSpeech/dev/1/2/1-2.trans.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"L"}
    assert {path.name for path in (tmp_path / "L").iterdir()} == {"LICENSE.TXT", "dev"}
    download(dataset, tmp_path)
    assert host.ranges == [None]


def test_a_file_fetched_in_another_way_is_used(host, tmp_path):
    host.status, dataset = 404, Dataset((archive_of(host),), "", "")
    (tmp_path / "speech.tar.gz").write_bytes(host.data)
    download(dataset, tmp_path)
    assert (tmp_path / "L/dev").is_dir() and not host.ranges


def test_what_came_before_the_connection_broke_is_kept(host, tmp_path):
    host.most_bytes = 4000
    fetch(archive_of(host), tmp_path / "a", NO_PAUSES)
    assert (tmp_path / "a").read_bytes() == host.data
    assert host.ranges == [None, "bytes=4000-", "bytes=8000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_server_that_cannot_resume_sends_it_again(host, tmp_path):
    (tmp_path / "a.partial").write_bytes(b"x" * 5000)
    host.know_ranges = False
    fetch(archive_of(host), tmp_path / "a", NO_PAUSES)
    assert (tmp_path / "a").read_bytes() == host.data


def test_another_version_on_the_server_is_not_appended(host, tmp_path):
    host.most_bytes = 4000
    host.know_ranges = False
    try_to_fetch(host, tmp_path / "a")
    host.tag, host.know_ranges, host.most_bytes, host.data = '"second"', True, None, pack({"x": b"y"})
    fetch(archive_of(host), tmp_path / "a", NO_PAUSES)
    assert (tmp_path / "a").read_bytes() == host.data


def test_a_partial_file_that_is_whole_or_too_long(host, tmp_path):
    (tmp_path / "a.partial").write_bytes(host.data)
    fetch(archive_of(host), tmp_path / "a", NO_PAUSES)
    (tmp_path / "b.partial").write_bytes(host.data + b"more")
    fetch(archive_of(host), tmp_path / "b", NO_PAUSES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == host.data


def test_a_server_that_never_sends_all_of_it_is_given_up(host, tmp_path):
    host.most_bytes, host.know_ranges = 4000, False
    assert "broke off" in try_to_fetch(host, tmp_path / "a")
    assert len(host.ranges) == len(NO_PAUSES) + 2


def test_a_wrong_checksum_deletes_what_came(host, tmp_path):
    assert "not the published 00" in try_to_fetch(host, tmp_path / "a", checksum="md5:00")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (503, 5)])
def test_a_server_that_refuses(host, tmp_path, status, attempts):
    host.status = status
    message = try_to_fetch(host, tmp_path / "speech.tar.gz")
    assert f"answers {status}" in message and str(tmp_path / "speech.tar.gz") in message
    assert len(host.ranges) == attempts


def test_no_network_is_one_error(tmp_path):
    archive = Archive("http://nowhere.invalid/speech.tar.gz", "md5:00", "", "a")
    with pytest.raises(DownloadError, match=r"cannot be reached .*check the network"):
        fetch(archive, tmp_path / "a", (0.0,))


def test_a_full_disk_is_said_before_anything_is_fetched(host, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: module.shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DownloadError, match=r"GB are free.*make room"):
        download(Dataset((archive_of(host),), "", ""), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../escaped": b""}, "outside"),
        ({"/absolute": b""}, "no folder"),  # which the filter makes relative
        ({"LibriSpeech/other/a": b""}, "no folder LibriSpeech/dev"),
    ],
)
def test_an_archive_writes_nothing_elsewhere(host, tmp_path, files, message):
    host.data = pack(files)
    with pytest.raises(DownloadError, match=message):
        download(Dataset((archive_of(host),), "", ""), tmp_path / "out")
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "out/L/dev").exists()


def test_an_archive_that_is_none(host, tmp_path):
    host.data = b"<html>not found</html>"
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        download(Dataset((archive_of(host),), "", ""), tmp_path)


def test_every_data_set_has_published_checksums_and_a_place_of_its_own():
    archives = [archive for dataset in DATASETS.values() for archive in dataset.archives]
    lengths = {"md5": 32, "sha256": 64}
    for archive in archives:
        algorithm, value = archive.checksum.split(":")
        assert len(value) == lengths[algorithm] and int(value, 16) and archive.url.startswith("https://")
    assert len({archive.target for archive in archives}) == len(archives)


def test_speech_commands_get_a_manifest_with_the_published_splits(tmp_path):
    for name in ("go/a1_nohash_0.wav", "go/b2_nohash_0.wav", "up/a1_nohash_1.wav", "up/c3_nohash_0.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(8000), 16_000)
    (tmp_path / "up/c3_nohash_0.wav").write_bytes(b"broken")
    (tmp_path / "_background_noise_").mkdir()
    soundfile.write(tmp_path / "_background_noise_/tap.wav", np.zeros(8000), 16_000)
    (tmp_path / "validation_list.txt").write_text("go/b2_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("up/c3_nohash_0.wav\n")
    write_manifest(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(row["id"], row["split"]) for row in rows] == [
        ("go-a1-0", "train"),
        ("go-b2-0", "dev"),
        ("up-a1-1", "train"),
    ]
    utterances = load_manifest(tmp_path)
    assert [(u.text, u.speaker, u.duration) for u in utterances][2] == ("up", "a1", 0.5)
    assert len(utterances[0].samples(16_000)) == 8000
