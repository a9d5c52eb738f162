"""Compares a recogniser that was trained on whole utterances with itself after a short training with dynamic chunks.

python sweep.py --sweep=configs/sweeps/dynamic_chunks.py --workdir=runs/dynamic_chunks \
    --json=results/sweeps/dynamic_chunks.json

The workdir is the one that configs/dynamic_chunks.py names. 21 minutes on two shared cores.
"""

from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "Nine command words: a model trained on whole utterances, as it is and as streams, and the same after 600 "
        "updates with dynamic chunks.",
        tuple(
            Trial(name, config=f"configs/dynamic_chunks.py:{name}", chunk_sizes=(16, 8)) for name in ("whole", "chunks")
        ),
    )
