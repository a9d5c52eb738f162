"""Layer and root-mean-square normalisation, and the pre-normalisers that carry them into narrow formats.

layer_norm(x, scale, bias)                                                     # float32
layer_norm(x, scale, bias, numerics=NormNumerics())                            # float16 throughout, stabilised
layer_norm(x, scale, bias, numerics=NormNumerics(Arithmetic(FLOAT16), NONE))   # float16 throughout, as defined
"""

from kernels.layer_norm.api import add_layer_norm as add_layer_norm
from kernels.layer_norm.api import layer_norm as layer_norm
from kernels.layer_norm.api import rms_norm as rms_norm
from kernels.layer_norm.faithful import NormNumerics as NormNumerics
from kernels.layer_norm.pre_normaliser import GEOMETRIC as GEOMETRIC
from kernels.layer_norm.pre_normaliser import NONE as NONE
from kernels.layer_norm.pre_normaliser import OPTIMAL_MAD as OPTIMAL_MAD
from kernels.layer_norm.pre_normaliser import OPTIMAL_MAX as OPTIMAL_MAX
from kernels.layer_norm.pre_normaliser import PLAIN_MAD as PLAIN_MAD
from kernels.layer_norm.pre_normaliser import PLAIN_MAX as PLAIN_MAX
from kernels.layer_norm.pre_normaliser import PreNormaliser as PreNormaliser
from kernels.layer_norm.pre_normaliser import static as static
