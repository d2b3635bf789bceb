"""A wall clock that jumps, in one process: clock_jumps.py SEED SCRIPT [ARGUMENTS] runs a script under it.

A stand-in for setting the host's clock: Python's time.time() lies, code that asks C or the kernel is not misled.
"""

from __future__ import annotations

import contextlib
import os
import random
import runpy
import sys
import time
from pathlib import Path


def jump_clock(seed: int) -> None:
    """From now on every look at this process's wall clock gives a random time between 1970 and 2096."""
    chance = random.Random(seed)
    time.time = lambda: chance.uniform(0, 4e9)
    time.time_ns = lambda: chance.randrange(4 * 10**18)


def jump_file_times(folder: Path, chance: random.Random) -> None:
    """Give the files below a folder random times of the past and the future."""
    for path in list(folder.rglob("*")):
        moment = chance.uniform(0, 4e9)
        with contextlib.suppress(FileNotFoundError):  # workers may remove files at the same time
            os.utime(path, (moment, moment))


if __name__ == "__main__":
    own = next(i for i, argument in enumerate(sys.argv) if argument.isdigit())
    seed, script = int(sys.argv[own]), sys.argv[own + 1]
    # The launcher may have put its own options first: deepspeed does.
    sys.argv = [script, *sys.argv[1:own], *sys.argv[own + 2 :]]
    jump_clock(seed + int(os.environ.get("RANK", 0)))
    runpy.run_path(script, run_name="__main__")
