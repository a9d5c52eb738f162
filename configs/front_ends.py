"""An ablation of front ends on real speech: everything but the front end the same, the seed too.

  python train.py --config=configs/front_ends.py:words,small --workdir=runs/words_small
  python sweep.py --sweep=configs/sweeps/subsampling.py --workdir=runs/subsampling    the four on words, compared
  python train.py --config=configs/front_ends.py:english_small,small --workdir=runs/english_front_end

`vanilla` and `depthwise_separable` have the same number of channels; `small` has fewer, and one stride more along
frequency, which leaves it less than 2.5 % of all arithmetic. `stacked` is a linear map alone.

With `english_small` the front end begins at random before the weights of models/english_small, and both are trained on:
10 minutes on 2 cores.
"""

from configs import english_small, libri_mini, words
from conformer.config import Config, ConfigError

BASES = ("words", "libri_mini", "english_small")
FRONT_ENDS = {  # with the stride along frequency of the last convolution
    "vanilla": ("vanilla", 1),
    "depthwise_separable": ("depthwise_separable", 1),
    "small": ("depthwise_separable", 2),
    "stacked": ("stacked", 1),
}
CHANNELS = {"words": 48, "libri_mini": 48, "english_small": 32}
SMALL = {"words": 12, "libri_mini": 22, "english_small": 22}  # as many as 2.5 % of all arithmetic allow
TRANSPLANT = {  # a front end that knows nothing, before an encoder that is trained
    "train.init_from": "models/english_small",
    "train.init_random": ("encoder.subsampling.*",),
    "train.consistency_weight": 0.0,  # a view costs half as long as two
    "train.warmup_steps": 100,
    "train.num_steps": 1_200,
    "train.eval_every": 1_200,
    "train.checkpoint_every": 200,
}


def get_config(name: str = "words,small") -> Config:
    base, _, front_end = name.partition(",")
    if base not in BASES or front_end not in FRONT_ENDS:
        raise ConfigError(
            f"configs/front_ends.py:{name}: choose one of {', '.join(BASES)}, a comma, and one of "
            f"{', '.join(FRONT_ENDS)}"
        )
    if base == "words":
        config = words.get_config().replace(
            {
                "model.encoder_dim": 96,
                "model.num_layers": 4,
                "model.feed_forward_dim": 384,
                "augment.speed_factors": (0.88, 0.94, 1.0, 1.06, 1.12),
                "data.bucket_seconds": (0.8, 3.0, 4.5, 6.5),
                "data.spoken_utterances": 0,
                "train.num_steps": 1_500,
            }
        )
    elif base == "english_small":
        config = english_small.get_config().replace(TRANSPLANT)
    else:
        config = libri_mini.get_config().replace(
            {
                "data.curriculum_steps": 600,
                "augment.mask_ramp_steps": 2_000,
                "train.num_steps": 2_000,
                "train.eval_every": 2_000,
            }
        )
    subsampling, frequency_stride = FRONT_ENDS[front_end]
    channels = {"small": SMALL[base], "stacked": 1}.get(front_end, CHANNELS[base])  # a linear map has none
    return config.replace(
        {
            "model.subsampling": subsampling,
            "model.subsampling_channels": channels,
            "model.subsampling_frequency_stride": frequency_stride,
        }
    )
