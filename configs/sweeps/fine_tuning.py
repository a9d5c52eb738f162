"""Five new words from five minutes of speech: a recogniser of nine words trained on, in three ways, against none.

python sweep.py --sweep=configs/sweeps/fine_tuning.py --workdir=runs/fine_tuning --json=results/sweeps/fine_tuning.json

43 minutes on two shared cores.
"""

from conformer.sweep import Sweep, Trial

CONFIG = "configs/five_words.py"


def get_sweep() -> Sweep:
    return Sweep(
        "Digit strings of one voice never heard, after five minutes of three others: words_micro, trained on in full, "
        "by adapters of rank 8 and a new head, or by a new head alone, against random weights, for as many updates.",
        tuple(Trial(way, config=f"{CONFIG}:{way}", chunk_sizes=(16,)) for way in ("lora", "full", "head", "nothing")),
    )
