"""Layer normalisation."""

from kernels.layer_norm.api import layer_norm as layer_norm
