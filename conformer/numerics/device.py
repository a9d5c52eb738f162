"""The device that an emulated policy stands for: its arithmetic, and how it normalises and takes the softmax."""

from conformer.policy import Policy
from kernels.emulator import Arithmetic, Format
from kernels.layer_norm import GEOMETRIC, NONE, NormNumerics
from kernels.lut_softmax import SoftmaxTables


def arithmetic(policy: Policy) -> Arithmetic:
    """Returns the arithmetic of every operation of a policy's device."""
    formats = (Format(name, policy.flush_to_zero) for name in (policy.storage, policy.accumulation))
    return Arithmetic(*formats, block=policy.block)


def norm_numerics(policy: Policy) -> NormNumerics:
    """Returns the numerics of the device's normalisations."""
    return NormNumerics(arithmetic(policy), GEOMETRIC if policy.stabilised_norm else NONE)


def softmax_tables(policy: Policy) -> SoftmaxTables:
    """Returns the device's tables of exponentials and reciprocals."""
    return SoftmaxTables(largest=min(arithmetic(policy).format.largest, 65504.0))
