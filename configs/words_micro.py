"""The nine command words for a microcontroller: under 250,000 parameters (the pack connected_words_16k).

python train.py --config=configs/words_micro.py --workdir=runs/words_micro

Expected: 36 minutes on 2 shared cores, WER 2.95 % on dev, on test 1.16 %, 1.45 % as a stream of 640 ms chunks
(results/words_micro.json).
Narrow and shallow, so that weights, working memory and state of a stream of 640 ms chunks fit 1 MB of flash and 512 KB
of RAM (docs/deployment.md); trained for that chunk and for whole utterances. models/words_micro holds the result.
"""

from conformer.config import AugmentConfig, Config, DataConfig, FeatureConfig, ModelConfig, TokenizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        features=FeatureConfig(trailing_silence=0.5),
        augment=AugmentConfig(
            speed_factors=(0.88, 0.94, 1.0, 1.06, 1.12),
            background_probability=0.06,
            pause_seconds=0.6,
            noise_probability=0.25,
            gain_db=(-10.0, 6.0),
            num_freq_masks=2,
            freq_mask_width=10,
            num_time_masks=1,
            time_mask_width=12,
            time_mask_share=0.1,
            mask_ramp_steps=3_000,
        ),
        data=DataConfig(
            source="../shared/data/connected_words_16k",
            batch_seconds=48.0,
            bucket_seconds=(0.8, 3.0, 4.5, 6.5),
            spoken_utterances=1_500,
            curriculum_steps=600,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=64),
        model=ModelConfig(
            positions="learned",  # as models/words_micro was trained, and less to compute
            subsampling_channels=16,
            encoder_dim=64,
            num_layers=3,
            feed_forward_dim=160,
            convolution_norm="batch_norm",
            dropout=0.05,
        ),
        train=TrainConfig(
            num_steps=6_000,
            optimiser="muon",
            learning_rate=2e-3,
            warmup_steps=200,
            ema_decay=0.998,
            chunk_sizes=(0, 16),
            num_left_chunks=(4, -1),
            log_every=50,
            eval_every=1_000,
            checkpoint_every=500,
        ),
    )
