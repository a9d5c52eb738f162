"""An ablation of front ends on real speech: everything but the front end the same, the seed too.

  python train.py --config=configs/front_ends.py:words,small --workdir=runs/words_small
  python sweep.py --sweep=configs/sweeps/subsampling.py --workdir=runs/subsampling    the four on words, compared

`vanilla` and `depthwise_separable` have the same number of channels; `small` has fewer, and one stride more along
frequency, which leaves it less than 2.5 % of all arithmetic. `stacked` is a linear map alone.
"""

from configs import libri_mini, words
from conformer.config import Config, ConfigError

BASES = ("words", "libri_mini")
FRONT_ENDS = {
    "vanilla": ("vanilla", 48, 1),
    "depthwise_separable": ("depthwise_separable", 48, 1),
    "small": ("depthwise_separable", None, 2),
    "stacked": ("stacked", 1, 1),  # it has no channels
}
SMALL = {"words": 12, "libri_mini": 22}  # channels: as many as 2.5 % of all arithmetic allow


def get_config(name: str = "words,small") -> Config:
    base, _, front_end = name.partition(",")
    if base not in BASES or front_end not in FRONT_ENDS:
        raise ConfigError(
            f"configs/front_ends.py:{name}: choose words or libri_mini, a comma, and one of {', '.join(FRONT_ENDS)}"
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
    else:
        config = libri_mini.get_config().replace(
            {
                "data.curriculum_steps": 600,
                "augment.mask_ramp_steps": 2_000,
                "train.num_steps": 2_000,
                "train.eval_every": 2_000,
            }
        )
    subsampling, channels, frequency_stride = FRONT_ENDS[front_end]
    return config.replace(
        {
            "model.subsampling": subsampling,
            "model.subsampling_channels": channels or SMALL[base],
            "model.subsampling_frequency_stride": frequency_stride,
        }
    )
