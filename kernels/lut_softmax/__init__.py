"""Masked softmax and log-softmax, exact or from tables."""

from kernels.lut_softmax.api import log_softmax as log_softmax
from kernels.lut_softmax.api import softmax as softmax
from kernels.lut_softmax.lut import SoftmaxTables as SoftmaxTables
from kernels.lut_softmax.table import BoundedExp as BoundedExp
from kernels.lut_softmax.table import Exp as Exp
from kernels.lut_softmax.table import Logarithm as Logarithm
from kernels.lut_softmax.table import Reciprocal as Reciprocal
from kernels.lut_softmax.table import Table as Table
