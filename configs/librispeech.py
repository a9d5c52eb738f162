"""LibriSpeech (Panayotov et al., 2015) with the encoders of Gulati et al. (2020), Table 1, made causal.

  python train.py --config=configs/librispeech.py:small --workdir=runs/librispeech --config.data.source=LibriSpeech

`small`, `medium` or `large` after the colon. The source is the folder that holds train-clean-100, dev-clean, ...; to
train on 100 hours add --config.data.train_splits=train-clean-100, ; for a test set run eval.py with --split=test-clean.
Meant for one large accelerator: where memory is short, lower data.batch_seconds.

Time: to be measured. Expected: to be measured.

| size   | layers | width | heads | units | parameters (millions) | with vanilla subsampling |
|--------|--------|-------|-------|-------|-----------------------|--------------------------|
| small  | 16     | 144   | 4     | 256   | 8.23                  | 8.40                     |
| medium | 16     | 256   | 4     | 1024  | 25.95                 | 26.48                    |
| large  | 17     | 512   | 8     | 1024  | 108.83                | 110.92                   |

Counted are the front end, the encoder and the CTC head; the published 10.3, 30.7 and 118.8 M include an LSTM decoder.
"""

from typing import NamedTuple

from conformer.config import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)


class Size(NamedTuple):
    num_layers: int
    encoder_dim: int
    num_heads: int
    num_units: int  # fewer for the small one: its head would be a large part of it


SIZES = {
    "small": Size(16, 144, 4, 256),
    "medium": Size(16, 256, 4, 1024),
    "large": Size(17, 512, 8, 1024),
}


def get_config(size: str = "small") -> Config:
    if size not in SIZES:
        raise ConfigError(f"configs/librispeech.py:{size}: unknown size {size!r}; choose small, medium or large")
    num_layers, dim, num_heads, num_units = SIZES[size]
    return Config(
        augment=AugmentConfig(
            speed_factors=(0.9, 1.0, 1.1),
            num_freq_masks=2,
            freq_mask_width=27,
            num_time_masks=10,
            time_mask_width=80,
            time_mask_share=0.05,
        ),
        data=DataConfig(
            source="LibriSpeech",
            train_splits=("train-clean-100", "train-clean-360", "train-other-500"),
            eval_splits=("dev-clean", "dev-other"),
            batch_seconds=960.0,
            bucket_seconds=(5.0, 9.0, 13.0, 15.0, 16.5, 18.0, 19.5),
            num_workers=8,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=num_units),
        model=ModelConfig(
            positions="learned",  # a step with "relative" computes a third more
            subsampling_channels=dim,
            encoder_dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_dim=4 * dim,
            kernel_size=32,
            dropout=0.1,
        ),
        train=TrainConfig(
            num_steps=40_000,
            learning_rate=0.02 * dim**-0.5,  # the peak of Vaswani et al. (2017), eq. 3, after 10,000 steps, doubled
            warmup_steps=4_000,
            ema_decay=0.9995,
            compute="bfloat16",
            chunk_sizes=(0, 8, 16, 32),
            num_left_chunks=(2, 4, 8, -1),
            log_every=100,
            eval_every=2_000,
            checkpoint_every=2_000,
        ),
    )
