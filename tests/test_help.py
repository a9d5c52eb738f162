"""The help of every command: one screen, with every flag that the documents use."""

import collections
import pathlib
import re
import runpy
import sys

import pytest
from absl import flags

from conformer.command import config_text
from conformer.config import Config

ROOT = pathlib.Path(__file__).parents[1]
SCREEN = 40  # lines


def used_flags() -> dict[str, set[str]]:
    """The flags of each script that a command of the documents gives it."""
    used = collections.defaultdict(set)
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text().replace("\\\n", " ")
        for script, arguments in re.findall(r"python (\w+\.py)([^`\n|#]*)", text):
            used[script] |= set(re.findall(r"(?<=--)[a-z][a-z-]*", arguments))
    return used


@pytest.fixture
def no_flags():
    """Removes the flags of scripts that other tests import, and restores them in the end."""
    scripts = {path.stem for path in ROOT.glob("*.py")}
    defined = {name: flags.FLAGS.find_module_defining_flag(name) or "" for name in flags.FLAGS}
    theirs = {
        name: flags.FLAGS[name]
        for name, module in defined.items()
        if module in scripts or module.startswith(("conformer.", "tests."))
    }
    for name in theirs:
        delattr(flags.FLAGS, name)
    yield
    for name, flag in theirs.items():
        flags.FLAGS[name] = flag


def help_of(script: str, monkeypatch, capsys) -> str:
    """Returns what `python SCRIPT --help` prints. Runs in this process, which has imported most of it."""
    before = set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    assert not end.value.code
    return capsys.readouterr().out


def test_help_fits_a_screen_and_lists_every_flag_of_the_documents(no_flags, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    used = used_flags()
    assert {"config", "extend"} <= used["train.py"] and {"beam-size", "lm", "hotwords"} <= used["transcribe.py"]
    scripts = sorted(path.name for path in ROOT.glob("*.py") if path.name != "setup.py")
    assert used.keys() <= set(scripts)
    for script in scripts:
        out = help_of(script, monkeypatch, capsys)
        assert len(out.splitlines()) <= SCREEN, out
        listed = set(re.findall(r"^ +(?:-h, )?--([a-z-]+)", out, re.MULTILINE))
        assert used[script] <= listed | {"help-config"}, script
        assert f"python {script}" in out or script == "demo.py"
        if script in ("train.py", "eval.py", "lm.py", "export.py", "sweep.py", "cost.py"):
            assert "Required." in out


def test_help_of_the_configuration_explains_every_key():
    lines = {line.split("=")[0]: line for line in config_text().splitlines()}
    assert lines.keys() == {f"--config.{key}" for key, _ in Config().items()}
    assert all(re.search(r"  \S", line) for line in lines.values())
    assert re.fullmatch(r"--config\.train\.chunk_sizes=0 +encoder frames; .*", lines["--config.train.chunk_sizes"])
