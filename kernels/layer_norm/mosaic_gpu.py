"""Normalisation on NVIDIA GPUs: rows in registers (`kernels.gpu_rows`)."""

import functools

from kernels import gpu_rows
from kernels.layer_norm import rowwise

ROWS = gpu_rows.Rows("layer_norm", "channels of x", per_lane=32)  # with twice as many the backward pass spills
candidates = ROWS.candidates
normalise = functools.partial(rowwise.normalise, ROWS)
