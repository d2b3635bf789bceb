"""Attention between channels, against normalise, matmul, softmax, matmul and a 1x1 convolution."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.op_race import run_benchmark

from dakd.kernels.transposed_attention import transposed_attention

if __name__ == "__main__":
    run_benchmark("transposed_attention", transposed_attention)
