"""Read English: eight hours of speech by 90 readers, and a dictionary that knows how its words sound.

  python train.py --config=configs/libri_mini.py --workdir=runs/libri_mini
  python train.py --config=configs/silence.py:libri_mini --workdir=runs/libri_mini_silent
  python train.py --config=configs/english_small.py:letters --workdir=runs/english_letters
  python train.py --config=configs/english_small.py:sounds --workdir=runs/english_sounds
  python train.py --config=configs/english_small.py:voices --workdir=runs/english_voices
  python train.py --config=configs/english_small.py:mmi --workdir=runs/english_mmi
  python train.py --config=configs/english_small.py --workdir=runs/english_small

Seven trainings, each of which begins with the one before. `letters` has two views of each utterance, which must agree
(`train.consistency_weight`): one sees the whole utterance, the other its chunks alone. It has speeds from 0.9 to 1.1,
more time masks, and no synthetic speech. `sounds` keeps the encoder and learns sounds in place of letters
(`tokenizer.kind=sounds`). `voices` adds the 58 speakers of the pack so762_adult. `mmi` makes right sounds likely among
all that were possible (`train.mmi_weight`), which is what a language model needs. The last, `warp`, goes on with that
and stretches frequencies, as other throats would (`augment.frequency_warp`).

Expected: 76, 5, 115, 96, 46, 87 and 95 minutes on 2 cores, most of them beside other work. WER on test 37.7 % greedy
and 21.6 % with the language model of models/english_small; as a stream of 640 ms 40.7 and 23.9 %,
in chunks of 320 ms that see 320 ms ahead 39.2 and 23.2 % (results/english_small.json). What each stage gives on dev:
docs/decoding.md.
"""

from configs import libri_mini
from conformer.config import Config, ConfigError

VOICES = {
    "tokenizer.kind": "given",
    "data.also_train": ("../shared/data/so762_adult",),
    "model.dropout": 0.2,
    "train.num_steps": 4_500,
}
MMI = VOICES | {
    "train.learning_rate": 6e-4,
    "train.mmi_weight": 0.5,
    "train.chunk_sizes": (0, 4, 4, 4, 8, 8, 8, 16),
    "train.num_left_chunks": (8, 16, -1),
}
STAGES: dict[str, dict] = {
    "letters": {
        "tokenizer.kind": "given",
        "train.init_from": "runs/libri_mini_silent",
        "train.num_steps": 14_000,
    },
    "sounds": {
        "tokenizer.kind": "sounds",
        "tokenizer.vocab_size": 160,
        "model.dropout": 0.15,
        "train.init_from": "runs/english_letters",
        "train.num_steps": 10_000,
    },
    "voices": VOICES
    | {
        "train.init_from": "runs/english_sounds",
        "train.learning_rate": 7e-4,
        "train.chunk_sizes": (0, 4, 4, 4, 8, 8, 16),
    },
    "mmi": MMI | {"train.init_from": "runs/english_voices"},
    "warp": MMI
    | {
        "augment.frequency_warp": 0.08,
        "train.init_from": "runs/english_mmi",
        "train.num_steps": 8_000,
    },
}


def get_config(stage: str = "warp") -> Config:
    if stage not in STAGES:
        raise ConfigError(f"configs/english_small.py:{stage}: choose one of {', '.join(STAGES)}")
    return libri_mini.get_config().replace(
        {
            "augment.speed_factors": (0.9, 0.95, 1.0, 1.05, 1.1),
            "augment.background_probability": 0.05,
            "augment.pause_seconds": 0.5,
            "augment.num_time_masks": 6,
            "augment.mask_ramp_steps": 0,
            "features.trailing_silence": 0.5,
            "data.batch_seconds": 39.0,
            "data.bucket_seconds": (2.5, 5.0, 9.0, 12.5, 15.5, 17.0, 19.5),  # for the slowest speed too
            "data.spoken_utterances": 0,
            "data.curriculum_steps": 0,
            "train.compute": "float32",
            "train.learning_rate": 1e-3,
            "train.consistency_weight": 0.2,
            "train.chunk_sizes": (0, 4, 4, 8, 8, 16),
            "train.weight_decay": 0.05,
        }
        | STAGES[stage]
    )
