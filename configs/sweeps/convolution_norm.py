"""BatchNorm after the depthwise convolution in the place of LayerNorm, trained on words with the same seed and steps.

python sweep.py --sweep=configs/sweeps/convolution_norm.py --workdir=runs/convolution_norm

About 6 minutes on two cores: one training of 1,500 steps. With LayerNorm it is `words_depthwise_separable` of
configs/sweeps/subsampling.py.
"""

from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What BatchNorm, which a device folds into the convolution before it, costs or gains in words: the encoder, "
        "seed and steps of words_depthwise_separable in the sweep of front ends, which has LayerNorm.",
        (
            Trial(
                "words_batch_norm",
                config="configs/front_ends.py:words,depthwise_separable",
                overrides={"model.convolution_norm": "batch_norm"},
                chunk_sizes=(16,),
            ),
        ),
    )
