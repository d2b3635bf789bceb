"""The forward process of both modalities from class ids and grey values, against the same in separate operations."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.op_race import run_benchmark

from dakd.kernels.joint_noising import joint_noising

if __name__ == "__main__":
    run_benchmark("joint_noising", joint_noising)
