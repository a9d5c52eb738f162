"""English read by Mandarin speakers, 1.35 hours, 58 speakers (the pack so762_adult).

python train.py --config=configs/so762.py --workdir=runs/so762

Time: to be measured. Expected: to be measured. The transcripts are the prompts, which hesitant readers did not always
follow, and the speech is too little for an open vocabulary: a test of accents and of small corpora, not a recogniser.
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(
            speed_factors=(0.9, 0.95, 1.0, 1.05, 1.1),
            noise_probability=0.5,
            gain_db=(-10.0, 6.0),
            num_freq_masks=2,
            freq_mask_width=27,
            num_time_masks=4,
            time_mask_width=20,
            time_mask_share=0.1,
            mask_ramp_steps=1_000,
        ),
        data=DataConfig(
            source="../shared/data/so762_adult",
            batch_seconds=66.0,
            bucket_seconds=(3.8, 5.0, 8.0, 11.0),  # room for 9.9 s at the lowest speed; 21 utterances are longer
            curriculum_steps=200,
        ),
        model=ModelConfig(encoder_dim=128, num_layers=6, feed_forward_dim=512, subsampling_channels=32, dropout=0.2),
        train=TrainConfig(
            num_steps=2_500,
            learning_rate=1e-3,
            warmup_steps=250,
            ema_decay=0.998,
            chunk_sizes=(0, 8, 16, 32),
            num_left_chunks=(2, 4, -1),
            eval_every=500,
            checkpoint_every=500,
        ),
    )
