"""One trained model under every numerics policy, without retraining.

python sweep.py --sweep=configs/sweeps/numerics.py --workdir=runs/numerics

Expected: 8 minutes on two shared cores, 8 more where the emulated devices are not compiled yet; no streams of those.
12 errors in 345 words under every policy but fp8_e4m3 (13) and the device without stabilisers (323), in
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
