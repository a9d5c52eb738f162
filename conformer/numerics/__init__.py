"""Numerics policies applied to trained models, without retraining."""

from conformer.numerics.apply import apply_policy as apply_policy
from conformer.numerics.calibrate import calibrate as calibrate
from conformer.numerics.residual import scale_residual as scale_residual
from conformer.numerics.residual import scale_stream as scale_stream
from conformer.policy import POLICIES as POLICIES
from conformer.policy import Policy as Policy
from conformer.policy import get_policy as get_policy
