"""The embedded default: digits and commands spoken by espeak-ng, recognised in voices never heard.

python train.py --config=configs/demo.py --workdir=runs/demo
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(freq_mask_width=12, time_mask_width=12, time_mask_share=0.1, mask_ramp_steps=600),
        data=DataConfig(source="synthetic", batch_seconds=24.0, bucket_seconds=(1.7, 2.5, 4.5), curriculum_steps=200),
        model=ModelConfig(encoder_dim=128, num_layers=4, feed_forward_dim=512, subsampling_channels=32, dropout=0.05),
        train=TrainConfig(
            num_steps=1_300,
            learning_rate=2e-3,
            warmup_steps=150,
            ema_decay=0.99,
            chunk_sizes=(0, 8, 16, 32),
            num_left_chunks=(2, 4, -1),
            eval_every=650,
            checkpoint_every=650,
        ),
    )
