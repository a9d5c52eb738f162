"""Arithmetic of low-precision hardware, bit for bit: formats, rounding after every operation, order of summation.

    half = Arithmetic(FLOAT16)                      # float16 throughout, sums by a tree
    x = half.round(x)                               # float32 array of float16 values
    y = half.divide(x, half.sum(x, keepdims=True))  # each step rounded to float16

`jnp.sum`, `jnp.matmul` and the like accumulate narrow formats in float32, which hides overflow and rounding.
"""

from kernels.emulator.arithmetic import Arithmetic as Arithmetic
from kernels.emulator.format import BFLOAT16 as BFLOAT16
from kernels.emulator.format import FLOAT8_E4M3FN as FLOAT8_E4M3FN
from kernels.emulator.format import FLOAT8_E5M2 as FLOAT8_E5M2
from kernels.emulator.format import FLOAT16 as FLOAT16
from kernels.emulator.format import FLOAT32 as FLOAT32
from kernels.emulator.format import Format as Format
