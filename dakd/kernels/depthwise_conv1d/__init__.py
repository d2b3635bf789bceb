"""Symmetric depthwise convolution of width 3 over a sequence, with SiLU."""

from dakd.kernels.depthwise_conv1d.api import depthwise_conv1d

__all__ = ["depthwise_conv1d"]
