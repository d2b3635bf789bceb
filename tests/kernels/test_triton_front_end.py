"""Triton's front end takes every kernel at the smallest and the oddest shapes.

The interpreter does not show it: for a compiler an argument that is 1 becomes a constant, which has no methods.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dakd.kernels import backend, triton_runtime
from dakd.testing.inputs import SHAPES

_ROOT = Path(__file__).resolve().parents[2]
_EXTRA = {
    "ddim_step": [dict(stochastic=True), dict(input_dtype=torch.bfloat16, label_update="identity")],
    "joint_noising": [dict(), dict(label=None, out_dtype=torch.bfloat16)],
    "depthwise_conv1d": [dict(), dict(bias=None)],
    "selective_scan": [dict(), dict(D=None, delta_bias=None)],
    "seg_loss": [dict(), dict(dice_samples="all", dice_form="generalized"), dict(dice_samples="none")],
}
_LAYOUTS = ("contiguous", "channels_last", "tokens")


@pytest.mark.slow
# In a process of its own, because in this one Triton may be interpreted.
@pytest.mark.skipif(triton_runtime.why_not("cuda") == "triton is not installed", reason="triton is not installed")
def test_front_end_takes_every_kernel_at_every_small_shape():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "compiled" in done.stdout


def main() -> None:
    sys.path.insert(0, str(_ROOT / "benchmarks"))
    import compile_check

    launches = {}
    for op in backend.OPS:
        dtypes = (torch.float32,) if op in ("ddim_step", "joint_noising") else (torch.float32, torch.bfloat16)
        compile_check.CASES[op] = [
            compile_check.Case(SHAPES[op][shape], dtype, layout, extra)
            for shape in ("tiny", "one", "odd")
            for dtype in dtypes
            for layout in _LAYOUTS
            for extra in _EXTRA.get(op, [{}])
        ]
        launches |= {launch[1:]: launch for launch in compile_check.record(op)}
    for launch in launches.values():
        try:
            _make_ir(launch)
        except Exception as error:
            raise RuntimeError(f"{launch.name} does not compile") from error
    print(f"compiled {len(launches)} launches")


def _make_ir(launch) -> None:
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    position = {parameter.name: number for number, parameter in enumerate(launch.kernel.params)}
    source = ASTSource(
        launch.kernel,
        signature=dict(launch.signature),
        constexprs={(position[name],): value for name, value in launch.constants},
        attrs={(position[name],): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    target = GPUTarget("cuda", 90, 32)
    compiler, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    compiler.load_dialects(context)
    options = compiler.parse_options(dict(num_warps=launch.num_warps, num_stages=launch.num_stages))
    source.make_ir(target, options, compiler.get_codegen_implementation(options), compiler.get_module_map(), context)


if __name__ == "__main__":
    main()
