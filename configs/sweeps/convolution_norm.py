"""The norm after the depthwise convolution, trained on words with the same seed and steps.

python sweep.py --sweep=configs/sweeps/convolution_norm.py --workdir=runs/convolution_norm

25 minutes on two shared cores: two trainings of 1,500 updates.
"""

from conformer.config import NORMS
from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What BatchNorm, which a device folds into the convolution, costs or gains in words beside LayerNorm: the same "
        "encoder, seed and steps, on nine command words.",
        tuple(
            Trial(
                f"words_{norm}",
                config="configs/front_ends.py:words,depthwise_separable",
                overrides={"model.convolution_norm": norm},
                chunk_sizes=(16,),
            )
            for norm in NORMS
        ),
    )
