"""Read English: the shipped weights of libri_mini, trained further on the same seven hours.

python train.py --config=configs/english_small.py --workdir=runs/english_small

Begins with models/libri_mini, which configs/libri_mini.py and configs/silence.py:libri_mini trained. What is new: no
synthetic speech, speeds from 0.9 to 1.1, more time masks, and two views of each utterance, which must agree
(`train.consistency_weight`). One view sees the whole utterance, the other its chunks alone.

Expected: 115 minutes on 2 cores beside other work. On test, WER 51.2 % whole, 52.8 % as a stream of 640 ms, 56.2 % at
320 ms (results/english_small.json); 32.2 % with a language model of books (results/english_small_books.json).
models/README.md has the commands.
"""

from configs import libri_mini
from conformer.config import Config


def get_config() -> Config:
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
            "tokenizer.kind": "given",
            "train.init_from": "models/libri_mini",
            "train.num_steps": 14_000,
            "train.compute": "float32",
            "train.learning_rate": 1e-3,
            "train.consistency_weight": 0.2,
            "train.chunk_sizes": (0, 4, 4, 8, 8, 16),
            "train.weight_decay": 0.05,
        }
    )
