"""An ablation of front ends on real speech: everything but the front end as in another config, the seed too.

  python train.py --config=configs/front_ends.py:words,small --workdir=runs/words_small
  python bench.py front_ends --workdir=runs/front_ends     # all of them, on words and libri_mini: hours

`vanilla` and `depthwise_separable` have as many channels as the encoder is wide, as in Xu et al. (2024); `small` has
fewer, and one stride more along frequency. Time and word error rates: to be measured.
"""

from configs import libri_mini, words
from conformer.config import Config, ConfigError

BASES = {"words": words, "libri_mini": libri_mini}
FRONT_ENDS = {
    "vanilla": ("vanilla", 144, 1),
    "depthwise_separable": ("depthwise_separable", 144, 1),
    "small": ("depthwise_separable", 20, 2),
}


def get_config(name: str = "words,small") -> Config:
    base, _, front_end = name.partition(",")
    if base not in BASES or front_end not in FRONT_ENDS:
        raise ConfigError(
            f"configs/front_ends.py:{name}: choose one of {', '.join(BASES)}, a comma, and one of "
            f"{', '.join(FRONT_ENDS)}"
        )
    config = BASES[base].get_config()
    model = config.model
    model.subsampling, model.subsampling_channels, model.subsampling_frequency_stride = FRONT_ENDS[front_end]
    return config
