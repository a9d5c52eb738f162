"""A learned bias for each distance against Transformer-XL's relative positions, same seed and steps.

python sweep.py --sweep=configs/sweeps/positions.py --workdir=runs/positions --json=results/sweeps/positions.json

Two trainings of 1,500 steps on words and two of 6,000 on libri_mini (configs/positions.py): two hours on two cores.
"""

from configs.positions import POSITIONS
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What attention gains from a term of content and position, and what that costs: the same network, seed and "
        "steps with a learned bias for each distance and with Transformer-XL's relative positions, on nine command "
        "words and on seven hours of read English.",
        tuple(
            Trial(f"{base}_{positions}", config=f"configs/positions.py:{base},{positions}", chunk_sizes=(chunk_size,))
            for base, chunk_size in (("words", 16), ("libri_mini", 8))  # 640 ms of either
            for positions in POSITIONS
        ),
    )
