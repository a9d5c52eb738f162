"""Seven hours of read English, 32 speakers (the pack libri_mini).

python train.py --config=configs/libri_mini.py --workdir=runs/libri_mini

The first of the seven trainings of models/english_small (configs/english_small.py). Expected: 76 minutes on one core
with bfloat16 products, which other work shared for most of them. On processors without those set
train.compute=float32.

9 % of the words of dev never occur in training: word error rates stay high, and cannot be compared with published
figures for LibriSpeech.
"""

from conformer.config import AugmentConfig, Config, DataConfig, ModelConfig, TokenizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        augment=AugmentConfig(
            speed_factors=(0.95, 1.0, 1.05),
            noise_probability=0.2,
            noise_snr_db=(10.0, 40.0),
            gain_db=(-10.0, 6.0),
            num_freq_masks=2,
            freq_mask_width=20,
            num_time_masks=3,
            time_mask_width=30,
            time_mask_share=0.05,
            mask_ramp_steps=10_000,
        ),
        data=DataConfig(
            source="../shared/data/libri_mini",
            batch_seconds=36.0,  # 2 of the longest utterances
            bucket_seconds=(2.5, 5.0, 9.0, 12.5, 15.5, 18.0),
            spoken_utterances=2_000,  # the first alignments are learned from them, then real and longer speech joins
            curriculum_steps=1_000,
        ),
        # A unit this short occurs often enough to be learned from 68,000 words, and still halves the labels.
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=128),
        # At 8 feature frames to an encoder frame an epoch takes half as long, which counts for more here.
        model=ModelConfig(
            positions="learned",  # as models/english_small was trained
            subsampling_factor=8,
            subsampling_channels=32,
            encoder_dim=144,
            num_layers=6,
            feed_forward_dim=576,
            dropout=0.1,
        ),
        train=TrainConfig(
            num_steps=22_000,
            compute="bfloat16",
            optimiser="muon",
            learning_rate=1.5e-3,
            warmup_steps=300,
            intermediate_weight=0.3,
            ema_decay=0.998,
            chunk_sizes=(0, 4, 8, 16),
            num_left_chunks=(4, 8, -1),
            log_every=50,
            eval_every=2_000,
            checkpoint_every=500,
        ),
    )
