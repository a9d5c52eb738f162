"""Softmax on TPUs: blocks of rows stream through vector memory (`kernels.tpu_rows`)."""

import functools

from kernels import tpu_rows
from kernels.lut_softmax import rowwise
from kernels.tpu_rows import gather as gather
from kernels.tpu_rows import lanes as lanes

ROWS = tpu_rows.Rows("lut_softmax", "keys of scores", block_bytes=2**18, whole_lanes=True)
candidates = ROWS.candidates
softmax = functools.partial(rowwise.softmax, ROWS, ROWS)
