"""Calls every GPU variant once forward and backward at small sizes: what compute-sanitizer watches."""

from __future__ import annotations

import argparse
import importlib

import torch

from dakd.kernels import backend
from dakd.testing.inputs import DIFFERENTIABLE, operands
from dakd.testing.numerics import forward_and_gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", action="append", help="named shapes of dakd.testing.inputs; default: tiny, odd")
    options = parser.parse_args()
    names = ("triton", "cuda") if options.device == "cuda" else ("cpu", "reference")
    called = []
    for op in backend.OPS:
        function = getattr(importlib.import_module(f"dakd.kernels.{op}"), op)
        for name in names:
            if backend.why_not(op, name, options.device) is None:
                for shape in options.shape or ["tiny", "odd"]:
                    inputs = operands(op, shape, device=options.device)
                    forward_and_gradients(lambda **given: function(**given, backend=name), inputs, DIFFERENTIABLE[op])  # noqa: B023
                called.append(f"{op}/{name}")
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"note: {', '.join(called) or 'no variant'}")


if __name__ == "__main__":
    main()
