"""A run of seconds, to try the commands and for the tests: it learns nothing worth keeping.

python train.py --config=configs/tiny.py --workdir=runs/tiny     about 15 s on two cores, most of it compilation
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, SyntheticConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(num_freq_masks=1, num_time_masks=1),
        data=DataConfig(
            source="synthetic",
            synthetic=SyntheticConfig(num_voices=3, train_utterances=12, eval_utterances=2),
            batch_seconds=12.0,
            bucket_seconds=(4.0,),
        ),
        model=ModelConfig(
            positions="learned",
            encoder_dim=32,
            num_layers=1,
            num_heads=2,
            feed_forward_dim=64,
            subsampling_channels=8,
            kernel_size=7,
        ),
        train=TrainConfig(
            num_steps=20,
            warmup_steps=4,
            chunk_sizes=(0, 8),
            num_left_chunks=(2, -1),
            log_every=1,
            eval_every=10,
            checkpoint_every=4,
        ),
    )
