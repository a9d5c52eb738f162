"""Files that are whole or not there, outputs that are checked before the work, and a user without a home."""

import errno
import os
import pathlib

import pytest

from conformer import runtime, system


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_can_be_written_passes(tmp_path):
    system.check_writable(None)
    system.check_writable(tmp_path / "new.json")
    (tmp_path / "old.json").touch()
    system.check_writable(str(tmp_path / "old.json"))
    system.check_writable(os.devnull)
    system.check_folder(tmp_path)
    system.check_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == ["old.json"]


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path, "is a folder: name a file in it"),
        (tmp_path / "none" / "x.json", "none does not exist: make that folder"),
        (tmp_path / "file" / "x.json", "file is no folder"),
    ):
        with pytest.raises(system.OutputError, match=words):
            system.check_writable(path)
    with pytest.raises(system.OutputError, match="file is a file: name another"):
        system.check_folder(tmp_path / "file" / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for check, path in ((system.check_writable, tmp_path / "x.json"), (system.check_folder, tmp_path / "x" / "y")):
        with pytest.raises(system.OutputError, match="may not be changed: name a folder of yours"):
            check(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "results.json"
    for before in ([], ["results.json"]):
        with pytest.raises(OSError, match="No space"), system.replacing(path) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        assert names(tmp_path) == before
        system.write_text(path, "whole")
    assert path.read_text() == "whole"


def test_links_stay_links_and_devices_devices(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    system.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_text() == "text"
    (tmp_path / "null").symlink_to(os.devnull)
    system.write_text(tmp_path / "null", "text")
    assert names(tmp_path) == ["folder", "link", "null"] and not os.path.isfile(os.devnull)


def test_a_user_without_a_home_has_no_cache(tmp_path, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", nowhere)
    assert runtime.cache_folder() is None
    (tmp_path / "file").touch()
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path / "file")
    assert runtime.cache_folder() is None
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path / "new")
    assert runtime.cache_folder() == tmp_path / "new" / ".cache" / "edge-conformer"
