"""Front ends before the same encoder, trained on real speech with the same seed and steps.

python sweep.py --sweep=configs/sweeps/subsampling.py --workdir=runs/subsampling

About an hour on two cores: four trainings of 1,500 steps, four of 2,000 (configs/front_ends.py).
"""

from configs.front_ends import BASES, FRONT_ENDS
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What a cheaper convolutional front end costs in words, and what it saves: the same encoder, seed and steps "
        "behind each of four, on nine command words and on read English.",
        tuple(
            Trial(f"{base}_{front_end}", config=f"configs/front_ends.py:{base},{front_end}", chunk_sizes=(16,))
            for base in BASES
            for front_end in FRONT_ENDS
        ),
    )
