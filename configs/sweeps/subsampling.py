"""Front ends before the same encoder, trained on real speech with the same seed and steps.

python sweep.py --sweep=configs/sweeps/subsampling.py --workdir=runs/subsampling

38 minutes on one core that other programs used too: four trainings of 1,500 steps (configs/front_ends.py). Not on
libri_mini: a training that is affordable here is too short to recognise words of it, and all four err in nearly all.
"""

from configs.front_ends import FRONT_ENDS
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What a cheaper convolutional front end costs in words, and what it saves: the same encoder, seed and steps "
        "behind each of four, on nine command words.",
        tuple(
            Trial(f"words_{front_end}", config=f"configs/front_ends.py:words,{front_end}", chunk_sizes=(16,))
            for front_end in FRONT_ENDS
        ),
    )
