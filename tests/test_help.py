"""The help of every command: one screen, with every flag that the documents use."""

import collections
import os
import pathlib
import re
import subprocess
import sys

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


def test_help_fits_a_screen_and_lists_every_flag_of_the_documents():
    used = used_flags()
    assert {"config", "extend"} <= used["train.py"] and {"beam-size", "lm", "hotwords"} <= used["transcribe.py"]
    scripts = sorted(path.name for path in ROOT.glob("*.py"))
    assert used.keys() <= set(scripts)
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    processes = {
        script: subprocess.Popen(
            [sys.executable, script, "--help"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for script in scripts
    }
    for script, process in processes.items():
        out = process.communicate()[0]
        assert process.returncode == 0 and len(out.splitlines()) <= SCREEN, out
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
