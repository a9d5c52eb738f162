"""Digit strings recorded at 8 kHz, three training voices, others to be recognised (the pack connected_digits_8k).

python train.py --config=configs/digits.py --workdir=runs/digits

Time: to be measured. Expected: to be measured. The audio is resampled to the 16 kHz of the front end, whose upper
quarter of mel bins then holds next to nothing. Three voices say little about a fourth: the speed factors, which shift
pitch and formants, stand in for the voices that are missing.
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TokenizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(
            speed_factors=(0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2),
            noise_probability=0.6,
            gain_db=(-15.0, 6.0),
            num_freq_masks=2,
            freq_mask_width=27,
            num_time_masks=2,
            time_mask_width=15,
            time_mask_share=0.1,
            mask_ramp_steps=1_000,
        ),
        data=DataConfig(
            source="../shared/data/connected_digits_8k",
            batch_seconds=60.0,
            bucket_seconds=(1.3, 3.5, 5.0, 6.5, 8.8),  # single digits first; room for 7 s at the lowest speed
            curriculum_steps=250,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=48),  # enough for a unit a digit
        model=ModelConfig(encoder_dim=128, num_layers=4, feed_forward_dim=512, subsampling_channels=32, dropout=0.15),
        train=TrainConfig(
            num_steps=1_500,
            learning_rate=1e-3,
            warmup_steps=150,
            ema_decay=0.995,
            chunk_sizes=(0, 4, 8, 16, 32),
            num_left_chunks=(1, 2, 4, -1),
            eval_every=250,
            checkpoint_every=500,
        ),
    )
