"""The embedded default: digits and commands spoken by espeak-ng, recognised in voices never heard.

python train.py --config=configs/demo.py --workdir=runs/demo
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(num_freq_masks=2, freq_mask_width=15, num_time_masks=2, time_mask_width=15),
        data=DataConfig(source="synthetic", batch_seconds=48.0, bucket_seconds=(2.5, 4.5, 6.0), curriculum_steps=60),
        model=ModelConfig(encoder_dim=128, num_layers=4, feed_forward_dim=512, subsampling_channels=32, dropout=0.05),
        train=TrainConfig(
            num_steps=700,
            learning_rate=3e-3,
            warmup_steps=100,
            ema_decay=0.99,
            chunk_sizes=(0, 8, 16, 32),
            num_left_chunks=(2, 4, -1),
            eval_every=350,
            checkpoint_every=350,
        ),
    )
