"""The same weights in both execution layouts: the errors must be equal, the times need not.

python sweep.py --sweep=configs/sweeps/layout.py --workdir=runs/layout

Expected: a minute on two shared cores, 4 errors in 345 words of whole utterances and 5 as streams in either layout
(results/sweeps/layout.json).
"""

from conformer.config import EXECUTIONS
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "One recogniser of nine command words with its tensors as (batch, frames, channels), and as (batch, channels, "
        "1, frames), which accelerators want; the weights are the same.",
        tuple(
            Trial(execution, model="models/words_micro", execution=execution, chunk_sizes=(16,))
            for execution in EXECUTIONS
        ),
    )
