"""The selective state-space scan of Mamba: a linear recurrence whose step size, input and output vary with time."""

from dakd.kernels.selective_scan.api import selective_scan

__all__ = ["selective_scan"]
