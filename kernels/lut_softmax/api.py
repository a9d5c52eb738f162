"""The public function; picks the implementation."""

from kernels.lut_softmax import reference
from kernels.typing import Array, Bool, Float


def softmax(scores: Float[Array, "*batch keys"], mask: Bool[Array, "*#batch keys"]) -> Float[Array, "*batch keys"]:
    """Softmax over the keys where `mask` is true.

        p_j = mask_j exp(s_j) / sum_k mask_k exp(s_k)

    A masked key gets exactly zero, and so does every key of a row that is masked as a whole (never NaN).

    Args:
        scores: attention scores.
        mask: true where a key may be attended; broadcast against scores.
    """
    return reference.softmax(scores, mask)
