"""A recogniser that knows whole utterances alone becomes a streaming one, by a short training with dynamic chunks.

  python train.py --config=configs/dynamic_chunks.py:whole --workdir=runs/dynamic_chunks/whole
  python train.py --config=configs/dynamic_chunks.py --workdir=runs/dynamic_chunks/chunks
  python sweep.py --sweep=configs/sweeps/dynamic_chunks.py --workdir=runs/dynamic_chunks      both, compared

`whole` is configs/front_ends.py:words,depthwise_separable without chunks; `chunks` begins with its weights, and sees a
chunk drawn for each batch for 600 updates.
"""

from configs import front_ends
from conformer.config import Config, ConfigError


def get_config(name: str = "chunks") -> Config:
    if name not in ("whole", "chunks"):
        raise ConfigError(f"configs/dynamic_chunks.py:{name}: choose whole or chunks")
    config = front_ends.get_config("words,depthwise_separable")
    if name == "whole":
        return config.replace({"train.chunk_sizes": (0,), "train.num_left_chunks": (-1,)})
    return config.replace(
        {
            "augment.mask_ramp_steps": 0,
            "data.curriculum_steps": 0,
            "train.init_from": "runs/dynamic_chunks/whole",
            "train.num_steps": 600,
            "train.warmup_steps": 50,
            "train.learning_rate": 1.5e-3,
            "train.ema_decay": 0.99,
        }
    )
