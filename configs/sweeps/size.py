"""Encoders of four sizes for nine command words, with the same data, seed and steps.

python sweep.py --sweep=configs/sweeps/size.py --workdir=runs/size

Not run here: four trainings of 3,000 steps, hours on two cores.
"""

from conformer.sweep import Sweep, Trial

SIZES = {"48x2": (48, 2), "72x3": (72, 3), "96x4": (96, 4), "144x5": (144, 5)}


def get_sweep() -> Sweep:
    return Sweep(
        "How many words larger encoders save: width and number of blocks, everything else the same.",
        tuple(
            Trial(
                name,
                config="configs/words.py",
                overrides={
                    "model.encoder_dim": width,
                    "model.num_layers": layers,
                    "model.feed_forward_dim": 4 * width,
                    "train.num_steps": 3_000,
                },
                chunk_sizes=(16,),
            )
            for name, (width, layers) in SIZES.items()
        ),
    )
