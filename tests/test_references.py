"""Random settings of imported checkpoints, against the libraries that made them (`python -m tests.references`).

Skipped where the peers' environment does not exist (`make peers`), or lacks the library.
"""

import pytest

from benchmarks import peers
from tests.references import LIMITS, MODULE, differences, random_settings


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
