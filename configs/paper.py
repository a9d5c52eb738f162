"""Front ends with the shares of Xu et al. (2024), and one that costs less, before the same encoder.

  python cost.py --config=configs/paper.py:vanilla --compare=configs/paper.py:depthwise_separable,configs/paper.py:small
  python train.py --config=configs/paper.py:small --workdir=runs/paper_small --config.data.source=LibriSpeech

| after the colon     | front end                                   | of all multiply-accumulates | published |
|---------------------|---------------------------------------------|-----------------------------|-----------|
| vanilla             | 512 channels, 3x3 stride 2, 5x5 stride 3    | 32.85 %                     | 32.8 %    |
| depthwise_separable | the same, all but the first separable       | 3.99 %, 11.78 times fewer   | 4.0 %     |
| small               | 256 channels, the second 5x8 stride 3x6     | 0.89 %                      |           |

Published are the two shares, hence a ratio of 11.54 to 11.90 between the front ends and the encoder's cost as a
multiple of theirs. Not published, and chosen here: the stack (3x3 convolutions alone give at most 9 times; this one,
WeNet's for 6x, gives 11.78 with as many channels as the width and 512 of them), whether the output linear counts (it
does here), the encoder's depth and width (27 blocks of 512 have the cost that fits, as have 16 of twice the hidden
width; 174 M parameters, more than a watch would be given), and the length of the utterance (10 s here, which decides
attention's part). Nothing here has been trained.
"""

from configs import librispeech
from conformer.config import Config, ConfigError

FRONT_ENDS = {
    "vanilla": ("vanilla", 512, 1),
    "depthwise_separable": ("depthwise_separable", 512, 1),
    "small": ("depthwise_separable", 256, 2),
}
SECONDS = 10.0  # of the utterance that shares are of


def get_config(front_end: str = "depthwise_separable") -> Config:
    if front_end not in FRONT_ENDS:
        raise ConfigError(f"configs/paper.py:{front_end}: choose {', '.join(FRONT_ENDS)}")
    subsampling, channels, frequency_stride = FRONT_ENDS[front_end]
    return librispeech.get_config("large").replace(
        {
            "model.positions": "learned",  # less to compute
            "model.subsampling": subsampling,
            "model.subsampling_channels": channels,
            "model.subsampling_frequency_stride": frequency_stride,
            "model.subsampling_factor": 6,
            "model.num_layers": 27,
            "model.kernel_size": 31,
        }
    )
