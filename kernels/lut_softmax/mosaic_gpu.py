"""Softmax on NVIDIA GPUs: rows in registers (`kernels.gpu_rows`), tables gathered through the L1 cache."""

import functools

from kernels import gpu_rows
from kernels.gpu_memory import gather as gather
from kernels.lut_softmax import rowwise

ROWS = gpu_rows.Rows("lut_softmax", "keys of scores", per_lane=64)
candidates = ROWS.candidates
softmax = functools.partial(rowwise.softmax, ROWS, ROWS._replace(per_lane=32))
