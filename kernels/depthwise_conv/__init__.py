"""Depthwise convolution in one and two dimensions, without padding."""

from kernels.depthwise_conv.api import depthwise_conv as depthwise_conv
