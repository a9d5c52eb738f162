"""Recordings of your own, from a few dozen on: docs/your_data.md walks the way.

python train.py --config=configs/own.py --workdir=runs/own --config.data.source=recordings/manifest.jsonl

Expected: some minutes on two cores. Twenty recordings are learned by heart, and no more: the loss falls, and other
sentences stay wrong. The error rate falls with hours of speech.
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TextConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(speed_factors=(0.9, 1.0, 1.1), noise_probability=0.3, gain_db=(-10.0, 6.0)),
        data=DataConfig(source="recordings/manifest.jsonl", batch_seconds=48.0),  # buckets are derived
        text=TextConfig(normalise="english"),
        model=ModelConfig(encoder_dim=128, num_layers=4, feed_forward_dim=512, subsampling_channels=32),
        train=TrainConfig(
            num_steps=1_000,
            learning_rate=1.5e-3,
            warmup_steps=100,
            ema_decay=0.99,
            chunk_sizes=(0, 8, 16, 32),
            num_left_chunks=(4, -1),
            eval_every=250,
            checkpoint_every=250,
        ),
    )
