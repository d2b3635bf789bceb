"""Attention between channels (CAFT's core): softmax over key channels, output projection, residual."""

from dakd.kernels.transposed_attention.api import transposed_attention

__all__ = ["transposed_attention"]
