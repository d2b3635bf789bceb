"""What a user of `import dakd` types: the README's examples, and each op in a module of one's own."""

from __future__ import annotations

from documents import ROOT, python_blocks

SNIPPETS = python_blocks((ROOT / "README.md").read_text())

# Run by an interpreter that has not imported dakd yet.
COMPILED = """
import torch, dakd
from importlib import import_module

for op in ("ddim_step", "depthwise_conv1d", "joint_noising", "seg_loss", "selective_scan", "transposed_attention"):
    class Mine(torch.nn.Module):
        def forward(self, given):
            return getattr(dakd.kernels, op)(**given)

    from dakd.testing.inputs import operands
    given = operands(op, "tiny")
    torch.compiler.reset()
    pair = torch.compile(Mine(), fullgraph=True, backend="aot_eager")(given), Mine()(given)
    compiled, eager = (one if isinstance(one, tuple) else (one,) for one in pair)
    same = [a is b is None or torch.allclose(a, b, equal_nan=True) for a, b in zip(compiled, eager, strict=True)]
    import_module(f"dakd.kernels.{op}.api")  # the room must not take the function's place
    print(op, all(same), len(same) > 0, type(getattr(dakd.kernels, op)).__name__)
"""
