"""An ablation of what attention knows of positions: the same network, seed and steps with each.

  python train.py --config=configs/positions.py:words,relative --workdir=runs/words_relative
  python sweep.py --sweep=configs/sweeps/positions.py --workdir=runs/positions      all four, compared

`learned` is a bias for each head and distance; `relative` are sinusoids of distances, mapped in each block, after
Transformer-XL (docs/checkpoints.md).
"""

from configs import front_ends
from conformer.config import Config, ConfigError

BASES = ("words", "libri_mini")
POSITIONS = ("learned", "relative")
LONGER = {  # a network that has learned little of English tells nothing apart
    "augment.mask_ramp_steps": 4_000,
    "train.num_steps": 6_000,
    "train.eval_every": 3_000,
    "train.compute": "float32",
}


def get_config(name: str = "words,relative") -> Config:
    base, _, positions = name.partition(",")
    if base not in BASES or positions not in POSITIONS:
        raise ConfigError(f"configs/positions.py:{name}: choose words or libri_mini, a comma, and learned or relative")
    config = front_ends.get_config(f"{base},depthwise_separable").replace({"model.positions": positions})
    return config if base == "words" else config.replace(LONGER)
