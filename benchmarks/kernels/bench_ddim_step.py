"""One sampler step of both modalities with the next bf16 inputs, against the same in separate operations."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.op_race import run_benchmark

from dakd.kernels.ddim_step import ddim_step

if __name__ == "__main__":
    run_benchmark("ddim_step", ddim_step)
