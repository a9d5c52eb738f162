"""LibriSpeech (Panayotov et al., 2015) with the encoders of Gulati et al. (2020), Table 1, made causal.

  python train.py --config=configs/librispeech.py:small --workdir=runs/librispeech_small \\
      --config.data.source=LibriSpeech
  python train.py --config=configs/librispeech.py:small,mmi --workdir=runs/librispeech_small_mmi \\
      --config.data.source=LibriSpeech
  python lm.py --manifest=LibriSpeech --split=train-clean-100,train-clean-360,train-other-500 --dev-split=dev-clean \\
      --text=librispeech-lm-norm.txt.gz --vocabulary=200000 --min-counts=1,1,2 --prune=2e-8 --out=librispeech.lm
  python eval.py --workdir=runs/librispeech_small_mmi --manifest=LibriSpeech --split=dev-other --beam-size=16 \\
      --lm=librispeech.lm --tune=lm-weight=0.4,0.7,1.0 --tune=word-bonus=0,2 --keep-search
  python eval.py --workdir=runs/librispeech_small_mmi --manifest=LibriSpeech --split=test-other --streaming

`small`, `medium` or `large` after the colon. The source is the folder that holds train-clean-100, dev-clean, ...; to
train on 100 hours add --config.data.train_splits=train-clean-100, --config.train.num_steps=16000. The text for the
language model is that of https://www.openslr.org/11.

Time: to be measured. Expected: to be measured. Predicted for one H200 or one card of 24 GB: docs/scale_plan.md.

| size   | layers | width | heads | units | parameters (millions) | with vanilla subsampling |
|--------|--------|-------|-------|-------|-----------------------|--------------------------|
| small  | 16     | 144   | 4     | 256   | 8.56                  | 8.73                     |
| medium | 16     | 256   | 4     | 500   | 26.86                 | 27.39                    |
| large  | 17     | 512   | 8     | 500   | 113.01                | 115.10                   |

Counted are the front end, the encoder and the CTC head; the published 10.3, 30.7 and 118.8 M include an LSTM decoder.

The recipe is that of configs/english_small.py: Muon, two views that must agree, an intermediate loss, pauses and
sounds without speech, chunks of 320 ms to 1.28 s. What differs, and why:

- Batches of 2,800 s, 500 units and a consistency weight of 0.2 are those of icefall's CR-CTC (its RESULTS.md, medium
  and large). That trains on 150 times 960 hours, WeNet's streaming U2 on 120 times; so does this.
- Positions are relative, as in Gulati et al. A step of `large` is predicted to take a third longer. Fewer words are
  wrong: 2.9 in place of 5.8 % of nine words, 74.8 in place of 77.5 % of read English, learned from seven hours
  (results/sweeps/positions.json).
- Units are of letters, as in both recipes, which needs no dictionary. For sounds: --config.tokenizer.kind=sounds.
- Frequencies are not warped: there are 2,338 readers, not 90.

`mmi` is a short second stage that begins with the first one's weights, for recognition with a language model
(docs/training.md). Without one, take the first stage.
"""

from typing import NamedTuple

from conformer.config import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    FeatureConfig,
    ModelConfig,
    TokenizerConfig,
    TrainConfig,
)


class Size(NamedTuple):
    num_layers: int
    encoder_dim: int
    num_heads: int
    num_units: int  # fewer for the small one: its head would be a large part of it
    accumulate: int  # parts of a batch: what one GPU of 80 GB or more holds


SIZES = {
    "small": Size(16, 144, 4, 256, 4),
    "medium": Size(16, 256, 4, 500, 4),
    "large": Size(17, 512, 8, 500, 8),
}


def get_config(name: str = "small") -> Config:
    size, _, stage = name.partition(",")
    if size not in SIZES or stage not in ("", "mmi"):
        raise ConfigError(
            f"configs/librispeech.py:{name}: choose small, medium or large, and after a comma mmi for the second stage"
        )
    num_layers, dim, num_heads, num_units, accumulate = SIZES[size]
    config = Config(
        features=FeatureConfig(trailing_silence=0.5),
        augment=AugmentConfig(
            speed_factors=(0.9, 0.95, 1.0, 1.05, 1.1),
            background_probability=0.05,
            pause_seconds=0.5,
            noise_probability=0.2,
            noise_snr_db=(10.0, 40.0),
            gain_db=(-10.0, 6.0),
            num_freq_masks=2,
            freq_mask_width=27,
            num_time_masks=10,  # a quarter of the frames, with the share of Park et al. (2020): as many as CR-CTC masks
            time_mask_width=100,
            time_mask_share=0.05,
            mask_ramp_steps=4_000,
        ),
        data=DataConfig(
            source="LibriSpeech",
            train_splits=("train-clean-100", "train-clean-360", "train-other-500"),
            eval_splits=("dev-clean", "dev-other"),
            batch_seconds=2_800.0,
            bucket_seconds=(5.0, 9.0, 13.0, 15.0, 16.5, 18.0, 19.5),
            max_label_rate=15.0,
            curriculum_steps=2_000,
            num_workers=12,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=num_units),
        model=ModelConfig(
            positions="relative",
            subsampling_channels=dim,
            encoder_dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_dim=4 * dim,
            kernel_size=32,
            dropout=0.1,
        ),
        train=TrainConfig(
            num_steps=150_000,  # 120 times 960 hours
            optimiser="muon",
            # About that of configs/libri_mini.py at its width, and two fifths of Gulati's peak with Adam at any.
            learning_rate=0.02 * dim**-0.5,
            warmup_steps=4_000,
            weight_decay=0.05,
            intermediate_weight=0.3,
            consistency_weight=0.2,
            ema_decay=0.9998,
            compute="bfloat16",
            chunk_sizes=(0, 8, 8, 16, 16, 32),
            num_left_chunks=(4, 8, -1),
            accumulate=accumulate,
            log_every=100,
            eval_every=5_000,
            checkpoint_every=1_000,
        ),
    )
    if stage == "mmi":
        return config.replace(
            {
                "augment.mask_ramp_steps": 0,
                "data.curriculum_steps": 0,
                "tokenizer.kind": "given",
                "train.init_from": f"runs/librispeech_{size}",
                "train.num_steps": 15_000,
                "train.warmup_steps": 500,
                "train.learning_rate": 0.6 * config.train.learning_rate,
                "train.mmi_weight": 0.5,
            }
        )
    return config
