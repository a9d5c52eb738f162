"""Latency against errors: chunk sizes, and how many chunks of left context a stream keeps.

python sweep.py --sweep=configs/sweeps/chunk.py --workdir=runs/chunk

Expected: 2 minutes on two shared cores; WER from 7.8 % (160 ms, one chunk to the left) to 1.16 % (2,560 ms, as whole
utterances), in results/sweeps/chunk.json. The model was trained for chunks of 16 frames (640 ms) and whole utterances:
shorter ones show what it costs not to train for them.
"""

from conformer.sweep import Sweep, Trial


def get_sweep() -> Sweep:
    return Sweep(
        "What a user gains by waiting: words in error against latency, for streams that keep 1 to 8 chunks of left "
        "context. The model was trained for chunks of 640 ms and whole utterances.",
        tuple(
            Trial(f"left_{left}", model="models/words_micro", chunk_sizes=(4, 8, 16, 32, 64), num_left_chunks=left)
            for left in (1, 2, 4, 8)
        ),
    )
