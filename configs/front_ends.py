"""An ablation of front ends on real speech: everything but the front end the same, the seed too.

  python train.py --config=configs/front_ends.py:words,small --workdir=runs/words_small
  python sweep.py --sweep=configs/sweeps/subsampling.py --workdir=runs/subsampling    all six, compared

`vanilla` and `depthwise_separable` have the same number of channels; `small` has fewer, and one stride more along
frequency, which leaves it less than 2.5 % of the arithmetic of the encoder behind it.
"""

from configs import libri_mini, words
from conformer.config import Config, ConfigError

BASES = ("words", "libri_mini")
FRONT_ENDS = {
    "vanilla": ("vanilla", 48, 1),
    "depthwise_separable": ("depthwise_separable", 48, 1),
    "small": ("depthwise_separable", 10, 2),
}


def get_config(name: str = "words,small") -> Config:
    base, _, front_end = name.partition(",")
    if base not in BASES or front_end not in FRONT_ENDS:
        raise ConfigError(
            f"configs/front_ends.py:{name}: choose words or libri_mini, a comma, and one of {', '.join(FRONT_ENDS)}"
        )
    if base == "words":
        config = words.get_config()
        config.model.encoder_dim, config.model.num_layers, config.model.feed_forward_dim = 96, 4, 384
        config.train.num_steps, config.train.learning_rate = 1_500, 2e-3
    else:
        config = libri_mini.get_config()
        config.data.batch_seconds = 36.0  # twice as many updates an epoch, for a run this short
        config.data.curriculum_steps, config.augment.mask_ramp_steps = 600, 1_500
        config.train.num_steps, config.train.eval_every = 1_500, 1_500
    config.train.optimiser = "muon"
    model = config.model
    model.subsampling, model.subsampling_channels, model.subsampling_frequency_stride = FRONT_ENDS[front_end]
    return config
