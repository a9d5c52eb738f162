"""New front ends before the encoder of models/english_small, each trained on with it, and the model as it is shipped.

python sweep.py --sweep=configs/sweeps/front_ends_english.py --workdir=runs/front_ends_english \
    --json=results/sweeps/front_ends_english.json

Three trainings of 1,200 updates (configs/front_ends.py). Each model recognises dev and test, which choose nothing:
greedily, and with the search of models/english_small. 62 minutes on two cores that other programs used too.
"""

import pathlib

from conformer.decode.search import stored
from conformer.sweep import Sweep, Trial

SHIPPED = "models/english_small"
FRONT_ENDS = ("depthwise_separable", "vanilla", "small")


def get_sweep() -> Sweep:
    models = {name: f"configs/front_ends.py:english_small,{name}" for name in FRONT_ENDS} | {"shipped": ""}
    kept = {name: value for name, value in stored(pathlib.Path(SHIPPED)).items() if value}
    return Sweep(
        "Front ends before the encoder of english_small: each begins at random before its trained weights, and both "
        "are trained for as many updates with the same seed. The last is the model as it is shipped.",
        tuple(
            Trial(
                f"{name}{suffix}",
                config=config,
                model="" if config else SHIPPED,
                split="dev,test",
                chunk_sizes=(8,),
                num_left_chunks=16,
                masked=True,
                search=search,
            )
            for name, config in models.items()
            for suffix, search in (("", {"beam_size": 0}), ("_searched", kept))
        ),
    )
