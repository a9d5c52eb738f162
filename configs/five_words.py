"""A recogniser of nine words learns five new ones from five minutes of speech: four ways.

  python train.py --config=configs/five_words.py:lora --workdir=runs/five_words    # or full, head, nothing

Of the digit strings of three voices (the pack connected_digits_8k), "zero" to "eight": models/words knows zero, one,
five and eight, at another bandwidth. It is trained on in full, its head alone, or by adapters and the head; "nothing"
begins with random weights. All four learn with the same units, batches and number of steps.
"""

from configs import silence
from conformer.config import Config, ConfigError

KNOWN, NEW = ("zero", "one", "five", "eight"), ("two", "three", "four", "six", "seven")
WAYS = {
    "full": {"train.learning_rate": 5e-4, "train.encoder_rate": 0.5},
    "head": {"train.learning_rate": 2e-3, "train.frozen": ("encoder.*",)},
    "lora": {"train.learning_rate": 2e-3, "train.lora_rank": 8},
    # Where nothing is known, short utterances come first and masks late: docs/training.md.
    "nothing": {
        "train.learning_rate": 2e-3,
        "train.init_from": "",
        "data.curriculum_steps": 100,
        "augment.mask_ramp_steps": 200,
    },
}


def get_config(way: str = "lora") -> Config:
    if way not in WAYS:
        raise ConfigError(f"configs/five_words.py:{way}: choose one of {', '.join(WAYS)}")
    return (
        silence.get_config("words")
        .replace(
            {
                "augment.noise_probability": 0.4,
                "data.source": "../shared/data/connected_digits_8k",
                "data.words": KNOWN + NEW,
                "data.train_minutes": 5.0,
                "data.spoken_utterances": 0,
                "data.bucket_seconds": (1.3, 5.0, 8.8),
                "tokenizer.kind": "bpe",
                "tokenizer.vocab_size": 48,  # enough for a unit a word
                "train.init_from": "models/words",
                "train.num_steps": 400,
                "train.ema_decay": 0.99,
                "train.eval_every": 100,
                "train.checkpoint_every": 400,
            }
        )
        .replace(WAYS[way])
    )
