"""Calls GPU variants forward and backward, as a program for compute-sanitizer to watch and ncu to count."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lib.calls import make_call
from lib.op_race import DTYPES, OpRace, parse

from dakd.kernels import backend
from dakd.testing.inputs import DIFFERENTIABLE
from gpu import cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--op", action="append", choices=backend.OPS, help="repeatable; default: all")
    parser.add_argument("--shape", action="append", help="named shapes of dakd.testing.inputs; default: tiny, odd")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    options = parser.parse_args()
    names = cases.GPU_BACKENDS if options.device == "cuda" else ("cpu", "reference")
    called = []
    for op in options.op or backend.OPS:
        what = "forward+backward" if DIFFERENTIABLE[op] else "forward"
        for shape in options.shape or ["tiny", "odd"]:
            words = ["--device", options.device, "--dtype", options.dtype, "--shape", shape]
            race = OpRace(op, cases.function(op), parse(op, words))
            for name in (name for name in names if name in race.backends):
                make_call(race.with_backend(name), race.operands(shape, 0), DIFFERENTIABLE[op], what)()
                called.append(f"{op}/{name} {shape}")
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"called: {', '.join(called) or 'no variant'}")


if __name__ == "__main__":
    main()
