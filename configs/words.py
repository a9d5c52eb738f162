"""Nine command words in connected strings, real voices (the pack connected_words_16k).

python train.py --config=configs/words.py --workdir=runs/words

Expected: 32 minutes on a core that other work shared. After configs/silence.py:words, WER is 1.74 % on test and 2.90 %
as a stream of 640 ms chunks (results/words.json; weights in models/words).
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TokenizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(
            speed_factors=(0.82, 0.88, 0.94, 1.0, 1.06, 1.12, 1.18),
            noise_probability=0.2,
            gain_db=(-10.0, 6.0),
            num_freq_masks=2,
            freq_mask_width=15,
            num_time_masks=2,
            time_mask_width=15,
            time_mask_share=0.1,
            mask_ramp_steps=2_000,
        ),
        data=DataConfig(
            source="../shared/data/connected_words_16k",
            batch_seconds=48.0,
            bucket_seconds=(0.9, 3.2, 5.0, 7.5),
            spoken_utterances=1_500,
            curriculum_steps=600,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=64),
        model=ModelConfig(
            positions="learned",  # as models/words was trained
            encoder_dim=144,
            num_layers=5,
            feed_forward_dim=576,
            subsampling_channels=32,
            dropout=0.1,
        ),
        train=TrainConfig(
            num_steps=4_000,
            optimiser="muon",
            learning_rate=2e-3,
            warmup_steps=200,
            ema_decay=0.998,
            chunk_sizes=(0, 8, 16, 32),
            num_left_chunks=(2, 4, -1),
            log_every=50,
            eval_every=500,
            checkpoint_every=500,
        ),
    )
