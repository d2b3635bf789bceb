"""Runs a script in a process whose wall clock jumps: wild_clock.py SEED SCRIPT [ARGUMENTS]."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torture.victims import jump_clock

if __name__ == "__main__":
    own = next(i for i, argument in enumerate(sys.argv) if argument.isdigit())
    seed, script = int(sys.argv[own]), sys.argv[own + 1]
    # The launcher may have put options of its own before ours: deepspeed does.
    sys.argv = [script, *sys.argv[1:own], *sys.argv[own + 2 :]]
    jump_clock(seed + int(os.environ.get("RANK", 0)))
    runpy.run_path(script, run_name="__main__")
