"""Fetches public data sets from their own hosts: resumed where it broke off, checked, and unpacked whole or not at all.

An archive is OUT/NAME.partial until all of it is there and its checksum is right, then OUT/NAME. It is unpacked beside
the place where its folder belongs and moved there at the end, so that a folder with its final name is complete.
"""

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import pathlib
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator

import tqdm

from conformer.data import commands

_BLOCK_BYTES = 1 << 20
_SECONDS_TO_WAIT = 30.0  # for an answer, or for more of one
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each new attempt, while no byte comes


class DownloadError(ValueError):
    """A data set that cannot be fetched; the message names the address or file and the remedy."""


class _BrokenOffError(Exception):
    """A connection that ended before the file did."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A .tar.gz on a public host."""

    url: str
    checksum: str  # "md5:..." or "sha256:...", of the whole file
    folder: str  # of the data inside, "" = the top; other files beside it are kept too
    target: str  # where that folder goes, relative to OUT

    @property
    def name(self) -> str:
        return pathlib.PurePosixPath(urllib.parse.urlsplit(self.url).path).name


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that `prepare.py download` knows by a name."""

    archives: tuple[Archive, ...]
    licence: str
    next_command: str  # {out} is the folder
    finish: Callable[[pathlib.Path], None] | None = None  # makes what is unpacked ready for training


def _librispeech(number: int, split: str, checksum: str) -> Archive:
    url = f"https://www.openslr.org/resources/{number}/{split}.tar.gz"
    return Archive(url, checksum, f"LibriSpeech/{split}", f"LibriSpeech/{split}")


def _commands(version: str, checksum: str) -> Dataset:
    name = f"speech_commands_{version}"
    url = f"https://storage.googleapis.com/download.tensorflow.org/data/{name}.tar.gz"
    train = f"python train.py --config=configs/words.py --workdir=runs/commands --config.data.source={{out}}/{name}"
    licence = "Speech Commands, P. Warden, Google, 2017-2018: CC BY 4.0"
    return Dataset((Archive(url, checksum, "", name),), licence, train, commands.write_manifest)


# The checksums of OpenSLR 31 are those of its md5sum.txt; the others are those that torchaudio compares with.
_LIBRISPEECH_LICENCE = "LibriSpeech, V. Panayotov, G. Chen, D. Povey, S. Khudanpur, 2015: CC BY 4.0"
DATASETS = {
    "mini_librispeech": Dataset(
        (
            _librispeech(31, "train-clean-5", "md5:5df7d4e78065366204ca6845bb08f490"),
            _librispeech(31, "dev-clean-2", "md5:6d7ab67ac6a1d2c993d050e16d61080d"),
        ),
        _LIBRISPEECH_LICENCE,
        "python train.py --config=configs/libri_mini.py --workdir=runs/mini --config.data.source={out}/LibriSpeech "
        "--config.data.train_splits=train-clean-5, --config.data.eval_splits=dev-clean-2,",
    ),
    "librispeech-100": Dataset(
        (
            _librispeech(12, "dev-clean", "sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
            _librispeech(12, "test-clean", "sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
            _librispeech(
                12, "train-clean-100", "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"
            ),
        ),
        _LIBRISPEECH_LICENCE,
        "python train.py --config=configs/librispeech.py:small --workdir=runs/librispeech_small "
        "--config.data.source={out}/LibriSpeech --config.data.train_splits=train-clean-100, "
        "--config.data.eval_splits=dev-clean, --config.train.num_steps=16000",
    ),
    "speech_commands": _commands("v0.02", "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"),
    "speech_commands_v0.01": _commands(
        "v0.01", "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"
    ),
}


def download(dataset: Dataset, out: pathlib.Path) -> None:
    """Fetches, checks and unpacks each archive of a data set into `out`; what is there already is left.

    An archive that lies in `out` under its own name, fetched in another way, is used. An archive is deleted once it is
    unpacked. Raises DownloadError; the same call goes on from where the last one ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    for archive in dataset.archives:
        target = out / archive.target
        if target.exists():
            print(f"{target} is there already", flush=True)
            continue
        file = out / archive.name
        with _disk_errors(out):
            if not file.exists():
                fetch(archive, file)
            elif problem := _wrong_checksum(archive, file):
                raise DownloadError(f"{file} {problem}: delete it and run the same command, which fetches it")
            unpack(archive, file, target, dataset.finish)
        file.unlink()


def fetch(archive: Archive, file: pathlib.Path, pauses: tuple[float, ...] = _PAUSES) -> None:
    """Fetches an archive to `file`, from where the last attempt ended.

    Raises DownloadError, or OSError for the disk.

    Args:
        pauses: seconds before each new attempt; after the last one without a new byte it gives up.
    """
    partial = file.with_name(file.name + ".partial")
    validator = file.with_name(file.name + ".validator")  # the server's name of the version that `partial` is of
    most, failures = _size(partial), 0
    while problem := _attempt(archive, partial, validator):
        failures = 0 if _size(partial) > most else failures + 1
        most = max(most, _size(partial))
        if failures > len(pauses):
            raise DownloadError(
                f"{archive.url} {problem}: check the network, then run the same command, which keeps the "
                f"{_size(partial):,} bytes that came; or fetch the file in another way and put it at {file}"
            )
        time.sleep(pauses[failures - 1] if failures else 0)
    validator.unlink(missing_ok=True)
    if problem := _wrong_checksum(archive, partial):
        partial.unlink()
        raise DownloadError(
            f"{archive.url}: what came {problem}, and was deleted: run the same command again; if it fails again, the "
            "host sends something else"
        )
    partial.replace(file)


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _attempt(archive: Archive, partial: pathlib.Path, validator: pathlib.Path) -> str | None:
    """One request for what is missing; what went wrong with it, None once all is there."""
    have = _size(partial)
    try:
        _fetch_rest(archive, partial, validator)
        return None
    except urllib.error.HTTPError as error:
        error.close()
        problem = f"answers {error.code} {error.reason}"
        if error.code == 416 and have:  # there is no rest: it is whole already, or it is of another version
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return None
            partial.unlink()
        elif error.code < 500 and error.code not in (408, 429):
            raise DownloadError(
                f"{archive.url} {problem}: the data set may have moved; fetch {archive.name} from where it is now, put "
                f"it at {partial.with_suffix('')}, and run the same command"
            ) from None
        return problem
    except urllib.error.URLError as error:
        return f"cannot be reached ({getattr(error.reason, 'strerror', None) or error.reason})"
    except _BrokenOffError as error:
        return f"broke off ({error})"


def _fetch_rest(archive: Archive, partial: pathlib.Path, validator: pathlib.Path) -> None:
    """Appends to `partial` what is missing, or begins again where the server sends all of it or another version."""
    have = _size(partial)
    request = urllib.request.Request(
        archive.url, headers={"User-Agent": "edge-conformer", "Accept-Encoding": "identity"}
    )
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator.exists():
            request.add_header("If-Range", validator.read_text())
    with _open(request) as answer:
        if answer.status == 206:
            start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if not start or int(start[1]) != have:
                partial.unlink()
                raise _BrokenOffError(f"asked for the bytes from {have:,} on, the server sends others")
        else:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        if total and total - have > (free := shutil.disk_usage(partial.parent).free):
            raise OSError(errno.ENOSPC, f"{(total - have) / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        with open(partial, "ab" if have else "wb") as file:
            if tag and not tag.startswith("W/"):
                validator.write_text(tag)
            else:
                validator.unlink(missing_ok=True)
            with _bar(archive.name, total, have) as bar:
                while block := _read(answer):
                    file.write(block)
                    have += len(block)
                    bar.update(len(block))
    if total and have < total:
        raise _BrokenOffError(f"after {have:,} of {total:,} bytes")


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=_SECONDS_TO_WAIT)
    except urllib.error.URLError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from None


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(_BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:  # so that what is left of OSError is the disk's
        raise _BrokenOffError(str(error) or type(error).__name__) from None


def _wrong_checksum(archive: Archive, file: pathlib.Path) -> str | None:
    algorithm, expected = archive.checksum.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(file, "rb") as data, _bar(f"checking {archive.name}", file.stat().st_size) as bar:
        while block := data.read(_BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    found = digest.hexdigest()
    return None if found == expected else f"has the {algorithm} checksum {found}, not the published {expected}"


def unpack(
    archive: Archive, file: pathlib.Path, target: pathlib.Path, finish: Callable[[pathlib.Path], None] | None = None
) -> None:
    """Unpacks an archive so that `target` appears at once and whole. Raises DownloadError for another archive."""
    scratch = target.parent / f".{target.name}.unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with tarfile.open(file, "r|gz") as members:
            for member in tqdm.tqdm(members, desc=f"unpacking {file.name}", unit=" files", dynamic_ncols=True):
                members.extract(member, scratch, filter="data")
        folder = scratch / archive.folder
        if not folder.is_dir():
            raise DownloadError(f"{file} has no folder {archive.folder}: delete the file and run the same command")
        if finish:
            finish(folder)
        for beside in folder.parent.iterdir() if archive.folder else ():  # a licence, a list of speakers
            if beside.is_file():
                beside.replace(target.parent / beside.name)
        folder.replace(target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DownloadError(
            f"{file} cannot be unpacked ({error}): delete it and run the same command, which fetches it again"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _bar(name: str, total: int | None, initial: int = 0) -> tqdm.tqdm:
    return tqdm.tqdm(desc=name, total=total, initial=initial, unit="B", unit_scale=True, dynamic_ncols=True)


@contextlib.contextmanager
def _disk_errors(out: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{error.filename or out} cannot be written ({error.strerror or error}): make room, or name another "
            "folder with --out; the same command goes on from here"
        ) from None
