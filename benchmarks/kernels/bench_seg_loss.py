"""The student's losses per sample, against torch's own losses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.op_race import run_benchmark

from dakd.kernels.seg_loss import seg_loss

if __name__ == "__main__":
    run_benchmark("seg_loss", seg_loss)
