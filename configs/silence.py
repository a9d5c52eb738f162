"""A trained recogniser learns to write nothing where nobody speaks.

  python train.py --config=configs/silence.py:words --workdir=runs/words_silent
  python train.py --config=configs/silence.py:libri_mini --workdir=runs/libri_mini_silent

Begins with the run that configs/words.py or configs/libri_mini.py left in runs/words or runs/libri_mini
(--config.train.init_from=DIR for another), and adds sounds without speech and pauses to the same data.

Expected: 5 minutes for either on 2 cores that other work shared. models/words is the result of the first; it writes no
word into 17 sounds of a minute each (results/silence.json, results/words.json). models/english_small was trained on
from the second.
"""

from configs import libri_mini, words
from conformer.config import Config, ConfigError

BASES = {"words": words, "libri_mini": libri_mini}
NUM_STEPS = {"words": 400, "libri_mini": 300}


def get_config(base: str = "words") -> Config:
    if base not in BASES:
        raise ConfigError(f"configs/silence.py:{base}: choose one of {', '.join(BASES)}")
    return (
        BASES[base]
        .get_config()
        .replace(
            {
                "features.trailing_silence": 0.5,
                "augment.background_probability": 0.1,
                "augment.pause_seconds": 0.5,
                "augment.mask_ramp_steps": 0,
                "data.curriculum_steps": 0,
                "tokenizer.kind": "given",
                "train.init_from": f"runs/{base}",
                "train.num_steps": NUM_STEPS[base],
                "train.warmup_steps": 50,
                "train.learning_rate": 1e-4,
                "train.eval_every": NUM_STEPS[base],
            }
        )
    )
