"""The selective scan, against a plain loop over time under autograd."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.op_race import run_benchmark

from dakd.kernels.selective_scan import selective_scan

if __name__ == "__main__":
    run_benchmark("selective_scan", selective_scan)
