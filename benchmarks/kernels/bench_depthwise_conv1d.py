"""The symmetric depthwise convolution with SiLU, against torch's conv1d and silu."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.op_race import run_benchmark

from dakd.kernels.depthwise_conv1d import depthwise_conv1d

if __name__ == "__main__":
    run_benchmark("depthwise_conv1d", depthwise_conv1d)
