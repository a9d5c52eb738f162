"""A recogniser of nine words learns five new ones from five minutes of speech: four ways.

  python train.py --config=configs/five_words.py:lora --workdir=runs/five_words    # or full, head, nothing

Of the digit strings of three voices (the pack connected_digits_8k), "zero" to "eight": models/words_micro knows zero,
one, five and eight, at another bandwidth. It is trained on in full, its head alone, or by adapters and the head;
"nothing" begins with random weights. All four learn with the same units, batches and number of steps.
"""

from configs import words_micro
from conformer.config import Config, ConfigError

KNOWN, NEW = ("zero", "one", "five", "eight"), ("two", "three", "four", "six", "seven")
WAYS = {
    "full": {"train.encoder_rate": 0.3},
    "head": {"train.frozen": ("encoder.*",)},
    "lora": {"train.lora_rank": 8},
    "nothing": {"train.init_from": ""},
}


def get_config(way: str = "lora") -> Config:
    if way not in WAYS:
        raise ConfigError(f"configs/five_words.py:{way}: choose one of {', '.join(WAYS)}")
    return (
        words_micro.get_config()
        .replace(
            {
                "augment.speed_factors": (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2),  # for want of voices
                "augment.gain_db": (-30.0, 6.0),  # the voices of dev and test are 20 dB below those of train
                "augment.noise_probability": 0.5,
                "augment.mask_ramp_steps": 200,
                "data.source": "../shared/data/connected_digits_8k",
                "data.words": KNOWN + NEW,
                "data.train_minutes": 5.0,
                "data.spoken_utterances": 0,
                "data.bucket_seconds": (1.3, 9.0),
                "data.batch_seconds": 24.0,
                "data.curriculum_steps": 100,
                "tokenizer.vocab_size": 48,  # enough for a unit a word
                "train.init_from": "models/words_micro",
                "train.num_steps": 600,
                "train.warmup_steps": 50,
                "train.ema_decay": 0.99,
                "train.eval_every": 200,
                "train.checkpoint_every": 600,
            }
        )
        .replace(WAYS[way])
    )
