"""Random settings of imported checkpoints, against the libraries that made them (`python -m tests.references`).

Skipped where the peers' environment does not exist (`make peers`), or lacks the library.
"""

import pathlib
import subprocess
import sys

import pytest

from benchmarks import peers
from tests.references import LIMITS, MODULE, differences, random_settings

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("python, said", [("PYTHON", "PYTHON cannot be run"), ("/bin/false", "ended with status 1")])
def test_an_interpreter_that_is_none_costs_one_line(python, said):
    command = [sys.executable, "-m", "tests.references", f"--python={python}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("tests.references: ") and said in line


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["transformers", "wenet", "nemo"])
def test_random_settings(tmp_path, reference):
    try:
        peers.peers_python()
    except peers.PeerError as error:
        pytest.skip(str(error))
    with peers.Peer(MODULE) as peer:
        for seed in range(3):
            folder = tmp_path / str(seed)
            folder.mkdir()
            found = differences(peer, reference, seed, random_settings(reference, seed), folder)
            if found is None:
                pytest.skip(f"the peers' environment lacks {reference}")
            assert all(found[name] < limit for name, limit in LIMITS.items()), (seed, found)
