"""A learned bias for each distance against Transformer-XL's relative positions, same seed and steps.

python sweep.py --sweep=configs/sweeps/positions.py --workdir=runs/positions

About 80 minutes on two cores: two trainings of 1,500 steps, two of 2,000 (configs/positions.py).
"""

from configs.front_ends import BASES
from configs.positions import POSITIONS
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What attention gains from a term of content and position, and what that costs: the same network, seed and "
        "steps with a learned bias for each distance and with Transformer-XL's relative positions, on nine command "
        "words and on read English.",
        tuple(
            Trial(f"{base}_{positions}", config=f"configs/positions.py:{base},{positions}", chunk_sizes=(16,))
            for base in BASES
            for positions in POSITIONS
        ),
    )
