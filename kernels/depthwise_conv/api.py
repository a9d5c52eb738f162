"""The public function: checks its arguments, then calls the implementation."""

from kernels.depthwise_conv import xla
from kernels.typing import Array, Float


def depthwise_conv(
    x: Float[Array, "batch *space #channels"],
    kernel: Float[Array, "*taps channels"],
    *,
    stride: int | tuple[int, ...] = 1,
) -> Float[Array, "batch *out channels"]:
    """Convolves each channel with its own kernel over one or two axes of space, without padding.

        y[b, n, c] = sum_k x[b, stride n + k, c] kernel[k, c]

    Args:
        x: (batch, time, channels) or (batch, time, frequency, channels). A single channel goes to every kernel.
        kernel: (taps, channels) or (taps, taps, channels).
        stride: one number for each axis of space, or one for all, in elements.

    Returns:
        (batch, (time - taps) // stride + 1, ..., channels).

    Raises:
        ValueError: the kernel has the wrong rank, or x is smaller than the kernel.
    """
    strides = (stride,) * (kernel.ndim - 1) if isinstance(stride, int) else stride
    if x.ndim != kernel.ndim + 1:
        raise ValueError(f"x of shape {x.shape} needs a kernel of rank {x.ndim - 1}, not of shape {kernel.shape}")
    if any(size < width for size, width in zip(x.shape[1:-1], kernel.shape[:-1], strict=True)):
        raise ValueError(f"x of shape {x.shape} is smaller than the kernel's {kernel.shape[:-1]}: pad it first")
    return xla.depthwise_conv(x, kernel, strides)
