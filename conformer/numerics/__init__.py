"""Numerics policies: which formats and which algorithms a trained model is computed with, without retraining."""

from conformer.numerics.apply import apply_policy as apply_policy
from conformer.numerics.policy import POLICIES as POLICIES
from conformer.numerics.policy import Policy as Policy
from conformer.numerics.policy import get_policy as get_policy
from conformer.numerics.residual import scale_residual as scale_residual
from conformer.numerics.residual import scale_stream as scale_stream
