"""Numerics policies: the formats of the numbers that a model is computed with. Some have a name (POLICIES)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Policy:
    """The numbers that a model is computed with.

    With `storage` float32 the policy is about linear maps, which hold nearly all of the weights and of the work: it
    runs at full speed, and everything between them, and the output layer, stays float32. With another `storage` it is
    a device whose every operation ends in that format: emulated bit for bit (`kernels.emulator`), which is slow.

    Args:
        name: as on the command line.
        parameters: format that weights are kept in. int8 and float8 have a scale for each output.
        compute: format of the operands of matrix products. int8 and float8 have a scale for each row.
        accumulation: format in which products are added up.
        storage: format of every other intermediate result.
        stabilised_norm: normalisation with a pre-normaliser; else as defined.
        stabilised_softmax: softmax by tables with conditional rescaling, scores of a row shifted into their domain;
            else exp of the scores as they are. Both take effect where `storage` is narrow.
        flush_to_zero: the device has no subnormal numbers.
        block: order in which the device adds up (`kernels.emulator.Arithmetic`); None = a tree.
    """

    name: str
    parameters: str = "float32"
    compute: str = "float32"
    accumulation: str = "float32"
    storage: str = "float32"
    stabilised_norm: bool = True
    stabilised_softmax: bool = True
    flush_to_zero: bool = False
    block: int | None = None

    def __post_init__(self):
        if self.emulated and not self.parameters == self.compute == self.storage:
            raise ValueError(
                f"policy {self.name!r}: parameters and compute must be {self.storage}, as storage: a device whose "
                "operations end in one format is emulated"
            )
        if not self.emulated and self.parameters != self.compute:
            raise ValueError(f"policy {self.name!r}: compute must be {self.parameters}, as parameters")

    @property
    def emulated(self) -> bool:
        """True where every operation is rounded, rather than the operands of matrix products alone."""
        return self.storage != "float32"


def _device(name: str, format: str, **options: bool) -> Policy:
    """Returns a policy with everything in one format; an adder of 16 inputs and an accumulator compute its sums."""
    return Policy(name, parameters=format, compute=format, accumulation=format, storage=format, block=16, **options)


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("float32"),
        Policy("bfloat16", parameters="bfloat16", compute="bfloat16"),
        Policy("float16", parameters="float16", compute="float16"),
        Policy("int8", parameters="int8", compute="int8", accumulation="int32"),
        Policy("fp8_e4m3", parameters="float8_e4m3fn", compute="float8_e4m3fn"),
        Policy("fp8_e5m2", parameters="float8_e5m2", compute="float8_e5m2"),
        _device("edge_fp16", "float16"),
        _device("edge_fp16_naive", "float16", stabilised_norm=False, stabilised_softmax=False),
    )
}


def get_policy(name: str) -> Policy:
    """The policy of that name. Raises ValueError where there is none."""
    if name not in POLICIES:
        raise ValueError(f"numerics={name!r} is not one of {', '.join(POLICIES)}")
    return POLICIES[name]
