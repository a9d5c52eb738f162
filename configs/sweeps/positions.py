"""A learned bias for each distance against Transformer-XL's relative positions, same seed and steps.

python sweep.py --sweep=configs/sweeps/positions.py --workdir=runs/positions --json=results/sweeps/positions.json

About 20 minutes on two cores: two trainings of 1,500 steps (configs/positions.py, which has libri_mini too: at 2,000
steps of that, nine words in ten are wrong, and nothing is told apart).
"""

from configs.positions import POSITIONS
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What attention gains from a term of content and position, and what that costs: the same network, seed and "
        "steps with a learned bias for each distance and with Transformer-XL's relative positions, on nine command "
        "words.",
        tuple(
            Trial(f"words_{positions}", config=f"configs/positions.py:words,{positions}", chunk_sizes=(16,))
            for positions in POSITIONS
        ),
    )
