"""One trained model under every numerics policy, without retraining.

python sweep.py --sweep=configs/sweeps/numerics.py --workdir=runs/numerics

Expected: 38 minutes on two shared cores, most of them compilation; the emulated devices recognise no streams. 4 errors
in 345 words of whole utterances under every policy but fp8_e5m2 (5) and the device without stabilisers (22), in
results/sweeps/numerics.json.
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
