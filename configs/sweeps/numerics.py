"""One trained model under every numerics policy, without retraining.

python sweep.py --sweep=configs/sweeps/numerics.py --workdir=runs/numerics

Expected: TODO. Emulated devices take minutes each, most of them compilation, and are scored on whole utterances alone.
"""

from conformer.policy import POLICIES
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "A recogniser of nine command words, trained in float32, under every numerics policy, without being retrained.",
        tuple(
            Trial(name, model="models/words_micro", numerics=name, chunk_sizes=() if policy.emulated else (16,))
            for name, policy in POLICIES.items()
        ),
    )
