"""Trains on from a model as its work directory describes it, such as that of convert.py: features, network and units.

  python train.py --config=configs/imported.py:runs/wenet --workdir=runs/adapted --config.data.source=MANIFEST

Trains adapters of rank 8 and the head; --config.train.lora_rank=0 trains everything. Time and result are those of the
model and the recordings: docs/training.md has an example of each.
"""

import dataclasses
import pathlib

from configs import own
from conformer.config import Config


def get_config(workdir: str = "models/words_micro") -> Config:
    given = Config.from_json(pathlib.Path(workdir) / "config.json")
    config = dataclasses.replace(own.get_config(), features=given.features, model=given.model, text=given.text)
    return config.replace(
        {
            "tokenizer.kind": "given",
            "train.chunk_sizes": given.train.chunk_sizes,
            "train.num_left_chunks": given.train.num_left_chunks,
            "train.init_from": workdir,
            "train.learning_rate": 1e-3,
            "train.lora_rank": 8,
        }
    )
