"""Nine command words in connected strings, real voices (the pack connected_words_16k).

python train.py --config=configs/words.py --workdir=runs/words
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TokenizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(
            speed_factors=(0.85, 0.92, 1.0, 1.08, 1.15),
            noise_probability=0.5,
            gain_db=(-10.0, 6.0),
            num_freq_masks=2,
            freq_mask_width=20,
            num_time_masks=2,
            time_mask_width=20,
        ),
        data=DataConfig(
            source="../shared/data/connected_words_16k",
            batch_seconds=64.0,
            bucket_seconds=(1.2, 3.0, 4.5, 6.5),
            curriculum_steps=300,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=64),
        model=ModelConfig(encoder_dim=144, num_layers=6, feed_forward_dim=576, subsampling_channels=48, dropout=0.1),
        train=TrainConfig(
            num_steps=1_600,
            learning_rate=2e-3,
            warmup_steps=200,
            ema_decay=0.998,
            chunk_sizes=(0, 4, 8, 16, 32),
            num_left_chunks=(1, 2, 4, -1),
            eval_every=200,
            checkpoint_every=400,
        ),
    )
